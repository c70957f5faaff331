// Golden frames: frames with known outputs, to check that an engine computes the exported network, and one with its
// sensor data, to check what is before and behind the engine (deploy/golden.py, golden_file.py).
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "array.hpp"
#include "bundle.hpp"
#include "state.hpp"

namespace tessera {

struct GoldenFrame {
    std::string name;
    Arrays inputs;                 // without `state`
    Arrays outputs;                // the next state is sampled
    Arrays compared;               // task -> which detections an engine must find, like its scores
    Arrays sensors;                // what the inputs are made of; one frame has them
    Arrays prediction;             // TASK/NAME, packed
    std::optional<Moment> moment;  // of a network with a memory
};

// The frames with the outputs of this graph, in the order of their names.
std::vector<GoldenFrame> read_golden(const Bundle &bundle, const std::string &graph);

// Throws Error unless this library makes of the golden sensor data the inputs, and of the outputs the prediction, that
// the export made.
void require_end_to_end(const std::vector<GoldenFrame> &golden, const Bundle &bundle);

// Throws Error (TESSERA_WRONG_ENGINE) unless the outputs that the engine gives, with the next state `sampled`, are
// those of the frame within the manifest's tolerances.
void require_golden(const GoldenFrame &frame, const Arrays &outputs, const std::string &engine,
                    const Manifest &manifest);

// The detections that stay in their list if engines differ by this score at most. Where scores tie at the end of a
// list, engines are free to choose which detections are in it.
std::vector<bool> clear_detections(const Array &scores, double score);

std::vector<double> numbers(const Array &array);

// Every `golden.state_step`-th row and column of a state (1, C, rows, columns).
void sample(const Array &state, int step, Array &into);

}  // namespace tessera
