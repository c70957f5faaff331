#include "python_text.hpp"

#include <charconv>
#include <cstdio>

#include "error.hpp"

namespace tessera {

std::string repr(const std::string &value) {
    const char quote = value.find('\'') != std::string::npos && value.find('"') == std::string::npos ? '"' : '\'';
    std::string shown(1, quote);
    for (const char c : value) {
        const auto byte = static_cast<unsigned char>(c);
        char code[8];
        if (c == '\\' || c == quote) shown += {'\\', c};
        else if (c == '\n') shown += "\\n";
        else if (c == '\r') shown += "\\r";
        else if (c == '\t') shown += "\\t";
        else if (byte < 0x20 || byte == 0x7f) std::snprintf(code, sizeof code, "\\x%02x", byte), shown += code;
        else shown += c;
    }
    return shown + quote;
}

static std::string repr(double value) {
    char digits[400];
    const auto written = [&](std::chars_format form) {
        return std::string(digits, std::to_chars(digits, digits + sizeof digits, value, form).ptr);
    };
    std::string shown = written(std::chars_format::scientific);
    const int exponent = std::stoi(shown.substr(shown.find('e') + 1));
    if (exponent < -4 || exponent > 15) return shown;
    shown = written(std::chars_format::fixed);
    return shown.find('.') == std::string::npos ? shown + ".0" : shown;
}

std::string repr(const Json &value) {
    std::vector<std::string> parts;
    switch (value.type()) {
        case Json::value_t::object:
            for (const auto &[key, each] : value.items()) parts.push_back(repr(key) + ": " + repr(each));
            return "{" + join(parts, ", ") + "}";
        case Json::value_t::array:
            for (const Json &each : value) parts.push_back(repr(each));
            return "[" + join(parts, ", ") + "]";
        case Json::value_t::string:
            return repr(value.get_ref<const std::string &>());
        case Json::value_t::number_float:
            return repr(value.get<double>());
        case Json::value_t::boolean:
            return value.get<bool>() ? "True" : "False";
        case Json::value_t::null:
            return "None";
        default:
            return value.dump();
    }
}

std::string repr(const Shape &shape) {
    std::vector<std::string> parts;
    for (const int64_t each : shape) parts.push_back(std::to_string(each));
    return "(" + join(parts, ", ") + (shape.size() == 1 ? ",)" : ")");
}

std::string join(const std::vector<std::string> &parts, const char *between) {
    std::string joined;
    for (size_t i = 0; i < parts.size(); ++i) joined += (i ? between : "") + parts[i];
    return joined;
}

std::vector<std::string> split(const std::string &value, char at) {
    std::vector<std::string> parts;
    for (size_t start = 0, end = 0; end != std::string::npos; start = end + 1) {
        end = value.find(at, start);
        parts.push_back(value.substr(start, end - start));
    }
    return parts;
}

std::string format(const char *pattern, double value) {
    char shown[400];
    std::snprintf(shown, sizeof shown, pattern, value);
    return shown;
}

}  // namespace tessera
