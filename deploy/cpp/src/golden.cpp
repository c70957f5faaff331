// The golden frames in the files of a bundle (deploy/golden_file.py).
#include "golden.hpp"

#include <algorithm>
#include <set>

#include "error.hpp"
#include "inputs.hpp"

namespace tessera {

Arrays padded(const GoldenFrame &frame, const Bundle &bundle) {
    Arrays inputs = frame.inputs, padding = no_sensors(bundle.manifest());
    for (auto &[name, input] : inputs) {
        if (name.rfind("pillar_", 0) != 0) continue;
        Array &whole = padding.at(name);
        if (whole.byte_count() < input.byte_count())
            throw refused((bundle.path() / kGolden).string(), ": ", name,
                          " is larger than the manifest's preprocessing makes it");
        std::memcpy(whole.data<char>(), input.data<char>(), input.byte_count());
        input = std::move(whole);
    }
    return inputs;
}

Shape sampled(Shape shape, int64_t step) {
    for (size_t k = 2; k < shape.size() && shape.size() == 4; ++k) shape[k] = (shape[k] + step - 1) / step;
    return shape;
}

const Array &read_tensor(const Arrays &tensors, const std::string &start, const TensorInfo &described,
                         const fs::path &file) {
    const std::string name = start + "." + described.name;
    const auto found = tensors.find(name);
    if (found == tensors.end()) throw refused(file.string(), ": ", name, " is missing; export the bundle again");
    if (found->second.shape() != described.shape || found->second.type() != described.type)
        throw refused(file.string(), ": ", name, " is ", found->second.type_name(), " ",
                      join(found->second.shape(), " x "), ", the manifest says ", kTypes[described.type].name, " ",
                      join(described.shape, " x "));
    return found->second;
}

std::vector<GoldenFrame> read_golden(const Arrays &tensors, const Bundle &bundle, const std::string &graph) {
    const Manifest &manifest = bundle.manifest();
    const fs::path file = bundle.path() / kGolden;
    std::set<std::string> names;
    for (const auto &each : tensors) names.insert(each.first.substr(0, each.first.find('.')));
    if (names.empty()) throw refused(file.string(), ": holds no golden frame; export the bundle again");
    const std::string part = graph == "model.cpu.onnx" ? ".cpu" : ".model";
    std::vector<TensorInfo> outputs = manifest.outputs;
    for (const StatePair &pair : manifest.states)
        outputs.push_back({pair.output, sampled(pair.shape, manifest.golden.at("state_step")), TESSERA_FLOAT32});
    std::vector<GoldenFrame> frames;
    for (const std::string &name : names) {
        GoldenFrame &frame = frames.emplace_back();
        frame.name = name;
        for (const TensorInfo &described : outputs)
            frame.outputs[described.name] = read_tensor(tensors, name + part + ".outputs", described, file);
        for (const auto &task : manifest.tolerances.at("ranked").items()) {
            const Shape &listed = frame.outputs.at(task.key() + "/scores").shape();
            frame.compared[task.key()] =
                read_tensor(tensors, name + part + ".compared", {task.key(), listed, TESSERA_BOOL}, file);
        }
        for (TensorInfo described : manifest.inputs) {
            const auto stored = tensors.find(name + ".inputs." + described.name);
            if (described.name.rfind("pillar_", 0) == 0 && stored != tensors.end() &&
                std::min(described.shape.size(), stored->second.shape().size()) > 1)
                described.shape[1] = std::min(described.shape[1], stored->second.shape()[1]);
            frame.inputs[described.name] = read_tensor(tensors, name + ".inputs", described, file);
        }
    }
    return frames;
}

void sample(const Array &state, int step, Array &into) {
    const Shape &shape = state.shape();
    if (shape.size() != 4) {
        into = state;
        return;
    }
    into.resize(sampled(shape, step));
    float *to = into.data<float>();
    for (int64_t plane = 0; plane < shape[0] * shape[1]; ++plane)
        for (int64_t row = 0; row < shape[2]; row += step)
            for (int64_t column = 0; column < shape[3]; column += step)
                *to++ = state.data<float>()[(plane * shape[2] + row) * shape[3] + column];
}

}  // namespace tessera
