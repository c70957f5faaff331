// Texts as Python writes them, so that messages are the same.
#pragma once

#include <string>
#include <vector>

#include "array.hpp"
#include "manifest.hpp"

namespace tessera {

std::string repr(const std::string &value);
std::string repr(const Json &value);
std::string repr(const Shape &shape);
std::string join(const std::vector<std::string> &parts, const char *between);
std::vector<std::string> split(const std::string &value, char at);
std::string format(const char *pattern, double value);  // as printf

}  // namespace tessera
