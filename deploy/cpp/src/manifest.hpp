// manifest.json: the description of a bundle (docs/bundle_format.md, deploy/manifest.py).
#pragma once

#include <array>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "array.hpp"

namespace tessera {

using Json = nlohmann::ordered_json;

// Discarded if it is no JSON, or so deep that functions that call themselves would leave the stack.
Json parse_json(const std::string &content);

// The `results` of a manifest of schema 13.
Json results_of_schema_13(const Json &manifest);

struct TensorInfo {
    std::string name;
    Shape shape;
    Type type;
};

// How points are grouped by cells of the grid; `preprocessing.pillars`.
struct Pillars {
    int rows, columns;
    double cell;
    std::array<double, 2> x, y, z;  // m
    int most;                       // pillars
    int points;                     // of a pillar
    bool fullest;                   // which pillars stay if there are more; else the first, with cells in float32
};

// `preprocessing.pictures`.
struct Pictures {
    std::vector<std::string> cameras;  // in the order of the input `images`
    int height, width;
    int steps;  // of a pixel, into which places between pixels are rounded
};

// What counts as usable of a frame; `preprocessing.admission`.
struct Admission {
    double rigid;        // largest entry of R R^T - 1 of a rotation
    double upright;      // least z of the vehicle's z axis
    double far;          // m or pixels, which no number of a matrix reaches
    double narrowest;    // focal length in sides of the picture
    int largest;         // pixels, side of a picture
    double state_rigid;  // like `rigid`, of the motion between two frames
};

struct Preprocessing {
    std::string reference;
    int sweeps = 0;     // earlier ones of each LiDAR
    double oldest = 0;  // s
    std::optional<Pillars> pillars;
    int points = 0;  // places for single points of the keyframe
    std::optional<Pictures> pictures;
    // Input of another sensor -> each of its numbers where that is missing.
    std::map<std::string, int64_t, std::less<>> scanners;
    Admission admission;
};

struct Module {
    std::string name;
    std::vector<std::string> asks;  // facts that a frame must have for it to run
};

// `steering`: fact -> input; the fact holds where a number of the input is not zero, else no-FACT does.
struct Steering {
    std::vector<std::pair<std::string, std::string>> sensors;
    std::vector<std::string> values;  // of the input `conditions`, in its order
};

// An output that is an input on the next frame of a drive, float32.
struct StatePair {
    std::string input, output;
    Shape shape;

    bool operator==(const StatePair &other) const { return input == other.input && shape == other.shape; }
};

struct StateLimits {
    double seconds, speed;          // beyond which a state is not used
    std::array<double, 2> spacing;  // s from frame to frame in the training
};

// An output of a task, and how it becomes a result: perception/tasks/outputs.py has the fields and what they do.
struct Output {
    std::string task, name, tensor, unit;
    std::optional<std::string> result;  // TASK/NAME; none: others use the output
    tessera_kind kind;
    std::vector<std::string> names;
    double scale;
    tessera_area area{};  // 0 without cells
    bool squeeze, velocity;
    float instead;
    int steps;
    std::string nowhere, doubt;  // tensors; empty: none
    uint8_t none = 0;
    std::vector<int> groups;
    double limit = 0;
    Json suppression;  // null: none
};

struct Manifest {
    std::string name;
    std::vector<std::string> condition_values, condition_kinds;  // in the order of the taxonomy; the kind of each value
    int64_t release = 0;
    std::string expires;                      // as in the file; empty: never
    std::vector<TensorInfo> inputs, outputs;  // without the states
    std::vector<std::string> routes, folded, apart;
    std::vector<Module> banked;
    std::vector<StatePair> states;
    std::optional<StateLimits> state;  // none without states
    Preprocessing preprocessing;
    Steering steering;
    std::vector<Output> results;
    Json golden;  // how an engine's outputs are compared
    Json tolerances;
    Json json;  // all of it
};

}  // namespace tessera
