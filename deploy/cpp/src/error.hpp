// Errors with a message for the user: what, where, what to do.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

#include "tessera.h"

namespace tessera {

// Visible, so that an engine in another shared object can throw it.
class TESSERA_API Error : public std::runtime_error {
   public:
    Error(tessera_status status, const std::string &message) : std::runtime_error(message), status(status) {}
    tessera_status status;
};

// The parts of a message, joined.
template <typename... Parts>
std::string text(const Parts &...parts) {
    std::ostringstream stream;
    (stream << ... << parts);
    return stream.str();
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
