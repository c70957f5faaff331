// Golden frames: frames with known outputs, to check that an engine computes the exported network (deploy/golden.py).
#pragma once

#include <string>
#include <vector>

#include "array.hpp"
#include "bundle.hpp"

namespace tessera {

inline constexpr const char *kGolden = "golden.safetensors";

struct GoldenFrame {
    std::string name;
    Arrays inputs;    // without states, and without padding of pillars, which would be most of them
    Arrays outputs;   // the next states are sampled
    Arrays compared;  // task -> which detections an engine must find, like its scores
};

// The frames of the file's tensors with the outputs of this graph, in the order of their names.
std::vector<GoldenFrame> read_golden(const Arrays &tensors, const Bundle &bundle, const std::string &graph);

// The inputs as an engine takes them.
Arrays padded(const GoldenFrame &frame, const Bundle &bundle);

// The tensor with this type and shape, called START.NAME.
const Array &read_tensor(const Arrays &tensors, const std::string &start, const TensorInfo &described,
                         const fs::path &file);

// Throws Error (TESSERA_WRONG_ENGINE) unless the outputs that the engine gives, with the next states sampled, are
// those of the frame within the manifest's tolerances.
void require_golden(const GoldenFrame &frame, const Arrays &outputs, const std::string &engine,
                    const Manifest &manifest);

std::vector<double> numbers(const Array &array);

// Every `golden.state_step`-th row and column of a state (1, C, rows, columns); all of another.
void sample(const Array &state, int step, Array &into);

}  // namespace tessera
