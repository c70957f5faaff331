// Errors with a message for the user: what, where, what to do; and the texts in them.
#pragma once

#include <locale>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "tessera.h"

namespace tessera {

class Error : public std::runtime_error {
   public:
    Error(tessera_status status, const std::string &message) : std::runtime_error(message), status(status) {}
    tessera_status status;
};

// The parts of a message, joined; numbers as they are written in every locale of the host.
template <typename... Parts>
std::string text(const Parts &...parts) {
    std::ostringstream stream;
    stream.imbue(std::locale::classic());
    (stream << ... << parts);
    return stream.str();
}

// Values with something between them, such as the lengths of a shape.
template <typename Values>
std::string join(const Values &values, const char *between) {
    std::string joined;
    for (const auto &each : values) joined += (joined.empty() ? "" : between) + text(each);
    return joined;
}

inline std::vector<std::string> split(const std::string &value, char at) {
    std::vector<std::string> parts;
    for (size_t start = 0, end = 0; end != std::string::npos; start = end + 1) {
        end = value.find(at, start);
        parts.push_back(value.substr(start, end - start));
    }
    return parts;
}

template <typename... Parts>
Error refused(const Parts &...parts) {
    return {TESSERA_REFUSED, text(parts...)};
}

template <typename... Parts>
Error bad_input(const Parts &...parts) {
    return {TESSERA_BAD_INPUT, text(parts...)};
}

}  // namespace tessera
