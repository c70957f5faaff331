// Detects files that were changed, added or linked from elsewhere.
#include <openssl/evp.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <sstream>

#include "bundle.hpp"
#include "error.hpp"

namespace tessera {

std::string sha256(const std::string &content) {
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned int length = 0;
    if (EVP_Digest(content.data(), content.size(), digest, &length, EVP_sha256(), nullptr) != 1)
        throw Error(TESSERA_FAILED, "OpenSSL cannot compute a sha256");
    std::string shown;
    for (size_t i = 0; i < length; ++i)
        shown += {"0123456789abcdef"[digest[i] >> 4], "0123456789abcdef"[digest[i] & 15]};
    return shown;
}

std::optional<std::string> read_file(const fs::path &file) {
    std::ifstream stream;
    if (is_file(file)) stream.open(file, std::ios::binary);  // reading a pipe would wait for ever
    if (!stream.is_open()) return std::nullopt;
    std::string content{std::istreambuf_iterator<char>(stream), {}};
    return stream.bad() ? std::nullopt : std::optional(std::move(content));
}

bool is_file(const fs::path &path) {
    std::error_code error;
    return fs::is_regular_file(path, error);
}

std::string read_verified(const fs::path &file, const std::string &digest, const std::string &remedy) {
    std::optional<std::string> content = read_file(file);
    if (!content) throw refused(file.string(), ": the file is missing; ", remedy);
    if (sha256(*content) != digest)
        throw refused(file.string(), ": was changed (its sha256 differs from the record); ", remedy);
    return *std::move(content);
}

std::map<std::string, std::string> parse_sums(const std::string &content, const fs::path &file) {
    std::map<std::string, std::string> digests;
    std::istringstream lines(content);
    int number = 0;
    for (std::string line; std::getline(lines, line);) {
        ++number;
        const bool digest = line.size() > 66 && line.find_first_not_of("0123456789abcdef") == 64;
        if (!digest || line.compare(64, 2, "  ") != 0 || lines.eof())
            throw refused(file.string(), ": line ", number, " is not a sha256, two spaces and a name; do not use it");
        require_inside(file.parent_path(), line.substr(66));
        digests[line.substr(66)] = line.substr(0, 64);
    }
    return digests;
}

void require_inside(const fs::path &folder, const std::string &name) {
    // Drives, backslashes and what a path can be written without are refused as well.
    bool plain = !name.empty() && name.find('\\') == std::string::npos && name.compare(1, 1, ":") != 0;
    for (const std::string &part : split(name, '/'))
        plain = plain && !part.empty() && part != ".." && (part != "." || name == ".");
    plain = plain && std::none_of(name.begin(), name.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f; });
    if (!plain) throw refused(folder.string(), ": names what is not a path inside it; do not use this bundle: ", name);
    std::error_code failed;
    const fs::path real = fs::weakly_canonical(folder / name, failed);  // fails if it is a link to itself
    const std::string up = failed ? "" : real.lexically_relative(fs::weakly_canonical(folder)).begin()->string();
    if (up == "..")
        throw refused((folder / name).string(), ": a link leads out of the bundle; put the file itself there");
}

void require_nothing_else(const fs::path &folder, const std::set<std::string> &names,
                          const std::vector<std::string> &free) {
    std::vector<fs::path> found;
    for (const fs::directory_entry &entry :
         fs::recursive_directory_iterator(folder, fs::directory_options::skip_permission_denied)) {
        const std::string name = entry.path().lexically_relative(folder).generic_string();
        const bool inside = std::any_of(free.begin(), free.end(), [&](const std::string &each) {
            return (name + "/").compare(0, each.size() + 1, each + "/") == 0;
        });
        if (!names.count(name) && !inside && fs::symlink_status(entry).type() != fs::file_type::directory)
            found.push_back(entry.path());
    }
    if (found.empty()) return;
    throw refused(std::min_element(found.begin(), found.end())->string(),
                  ": SHA256SUMS does not name this file; remove it, or export the bundle again");
}

}  // namespace tessera
