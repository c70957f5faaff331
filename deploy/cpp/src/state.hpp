// What goes from frame to frame, and what steers the modules (perception/session.py, deploy/route.py).
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "array.hpp"
#include "geometry.hpp"
#include "manifest.hpp"

namespace tessera {

// What is known to hold, such as night and rain; sorted.
using Conditions = std::vector<std::string_view>;

// Where and when a frame was recorded.
struct Moment {
    std::string scene;
    int64_t timestamp = 0;  // us
    Matrix4 global_from_reference = kIdentity;
};

// Writes current_from_previous (1, 4, 4), state_valid (1) and elapsed (1), all float32; `before` may be null. Returns
// whether the state is valid.
bool state_inputs(const Moment *before, const Moment &moment, const Manifest &manifest, Arrays &inputs);

// Whether the network sees something of the sensor whose input is all zeros where it does not.
bool sees(const Arrays &inputs, const std::string &input);

// Writes `route` (1, modules) and `conditions` (1, values), float32, as far as the network has them.
void steer(const Manifest &manifest, const Conditions &conditions, Arrays &inputs);

}  // namespace tessera
