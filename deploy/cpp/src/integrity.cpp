// Detects files that were changed, added or linked from elsewhere.
#include <openssl/evp.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <sstream>

#include "bundle.hpp"
#include "error.hpp"

namespace tessera {

std::string hexadecimal(const unsigned char *bytes, size_t count) {
    std::string shown;
    for (size_t i = 0; i < count; ++i) shown += {"0123456789abcdef"[bytes[i] >> 4], "0123456789abcdef"[bytes[i] & 15]};
    return shown;
}

std::string sha256(const std::string &content) {
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned int length = 0;
    if (EVP_Digest(content.data(), content.size(), digest, &length, EVP_sha256(), nullptr) != 1)
        throw Error(TESSERA_FAILED, "OpenSSL cannot compute a sha256");
    return hexadecimal(digest, length);
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

bool is_whole(const Json &record, const std::string &content) {
    // Python writes JSON in one way only; of numbers other writers choose other digits.
    std::istringstream expected(record.dump(2)), found(content);
    for (std::string a, b;;) {
        const bool more = !!std::getline(expected, a), also = !!std::getline(found, b);
        if (more != also) return false;
        if (!more) break;
        const size_t number = a.rfind(' ') + 1;
        const bool same = b.compare(0, number, a, 0, number) == 0;
        if (a != b && (!same || b.find_first_not_of("0123456789+-.e,", number) != std::string::npos)) return false;
    }
    // Within strings JSON has no line breaks, so this is not within another member.
    static const std::string key = "\n  \"sha256\": \"";
    const size_t start = content.rfind(key) + key.size();
    if (content.back() == '\n' || content.rfind(key) == std::string::npos) return false;
    const std::string digest = content.substr(start, content.find('"', start) - start);
    return sha256(content.substr(0, start) + content.substr(start + digest.size())) == digest;
}

void require_inside(const fs::path &folder, const std::string &name) {
    // Drives, backslashes and what a path can be written without are refused as well.
    bool plain = !name.empty() && name.find('\\') == std::string::npos && name.compare(1, 1, ":") != 0;
    for (const std::string &part : split(name, '/'))
        plain = plain && !part.empty() && part != ".." && (part != "." || name == ".");
    plain = plain && std::none_of(name.begin(), name.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f; });
    if (!plain)
        throw refused(folder.string(), ": names '", name,
                      "', which is not a path inside it; do not use this bundle");
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
                  ": the manifest does not name this file; remove it, or export the bundle again");
}

// Every path from a model to a tensor: kind of message -> field -> kind of message in it. Field numbers are from
// onnx.proto3, the encoding is that of Protocol Buffers (protobuf.dev, "Encoding").
enum Kind { kModel, kTraining, kFunction, kGraph, kNode, kAttribute, kSparseTensor, kTensor };
static const std::map<uint64_t, Kind> kContains[] = {
    {{7, kGraph}, {20, kTraining}, {25, kFunction}},
    {{1, kGraph}, {2, kGraph}},
    {{7, kNode}, {11, kAttribute}},
    {{1, kNode}, {5, kTensor}, {15, kSparseTensor}},
    {{5, kAttribute}},
    {{5, kTensor}, {6, kGraph}, {10, kTensor}, {11, kGraph}, {22, kSparseTensor}, {23, kSparseTensor}},
    {{1, kTensor}, {2, kTensor}},
    {},
};

void require_self_contained(const std::string &content, const fs::path &file) {
    const Error no_onnx = refused(file.string(), ": not an ONNX file; export the bundle again");
    const auto varint = [&](std::string_view &left) {
        uint64_t value = 0;
        for (unsigned shift = 0;; shift += 7) {
            if (left.empty()) throw no_onnx;
            const auto byte = static_cast<unsigned char>(left[0]);
            left.remove_prefix(1);
            if (shift < 64) value |= uint64_t{byte & 127u} << shift;
            if (byte < 128) return value;
        }
    };
    std::vector<std::pair<Kind, std::string_view>> stack = {{kModel, content}};
    while (!stack.empty()) {
        auto [kind, left] = stack.back();
        stack.pop_back();
        while (!left.empty()) {
            const uint64_t key = varint(left), field = key >> 3, wire = key & 7;
            uint64_t size = wire == 1 ? 8 : wire == 5 ? 4 : 0, value = 1;
            if (wire == 0) value = varint(left);
            else if (wire == 2) size = varint(left);
            else if (size == 0) throw no_onnx;
            if (size > left.size()) throw no_onnx;
            if (kind == kTensor && (field == 13 || field == 14) && value != 0)  // external data, and whether it is used
                throw refused(file.string(),
                              ": keeps weights in another file, which no hash covers; export the bundle again");
            const auto inside = kContains[kind].find(field);
            if (wire != 0 && inside != kContains[kind].end()) stack.emplace_back(inside->second, left.substr(0, size));
            left.remove_prefix(size);
        }
    }
}

}  // namespace tessera
