// Files of tensors (github.com/huggingface/safetensors, "Format").
#include <algorithm>

#include "bundle.hpp"
#include "error.hpp"

namespace tessera {

Arrays read_safetensors(const std::string &content, const fs::path &file) {
    const auto require = [&file](bool right, const std::string &wrong) {
        if (!right) throw refused(file.string(), ": cannot read the golden frames (", wrong, ")");
    };
    uint64_t length = 0;
    require(content.size() >= sizeof length, "header too small");
    std::memcpy(&length, content.data(), sizeof length);
    require(length <= content.size() - sizeof length, "invalid header length");
    const Json header = parse_json(content.substr(sizeof length, length));
    require(header.is_object(), "invalid JSON in header");
    const std::string_view data = std::string_view(content).substr(sizeof length + length);
    Arrays arrays;
    std::vector<std::pair<size_t, size_t>> parts;  // of the data
    for (const auto &[name, described] : header.items()) {
        if (name == "__metadata__") continue;
        try {
            const std::string dtype = described.at("dtype");
            const auto *type = std::find_if(std::begin(kTypes), std::end(kTypes),
                                            [&](auto &each) { return each.safetensors == dtype; });
            require(type != std::end(kTypes), "unknown type " + dtype);
            const Shape shape = described.at("shape");
            const size_t begin = described.at("data_offsets").at(0), end = described.at("data_offsets").at(1);
            size_t size = type->bytes;
            for (const int64_t each : shape) {
                const auto side = static_cast<size_t>(each);
                require(each >= 0 && (side == 0 || size <= data.size() / side), "shape of " + name);
                size *= side;
            }
            require(begin <= end && end <= data.size() && end - begin == size, "offsets of " + name);
            Array &array = arrays.insert_or_assign(name, Array(type->type, shape)).first->second;
            if (size) std::memcpy(array.data<char>(), data.data() + begin, size);
            parts.emplace_back(begin, end);
        } catch (const Json::exception &error) {
            require(false, error.what());
        }
    }
    std::sort(parts.begin(), parts.end());
    size_t covered = 0;
    for (const auto &[begin, end] : parts) {
        require(begin == covered, "offsets that overlap or leave a gap");
        covered = end;
    }
    require(covered == data.size(), "incomplete metadata, file not fully covered");
    return arrays;
}

}  // namespace tessera
