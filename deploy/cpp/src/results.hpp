// The network's outputs become results: boxes after NMS, map, classes of points, voxels, conditions.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "array.hpp"
#include "manifest.hpp"
#include "nms.hpp"

namespace tessera {

// Makes the results of the first frame of a batch, TASK/NAME, as `to_prediction` of perception/tasks/task.py:
//   detection/  centers (N, 3), sizes (N, 3), rotations (N, 3, 3), velocities (N, 3), scores (N) float64;
//               labels (N), attributes (N) int64; best first
//   map/        probabilities (layers, rows, columns) float32
//   points/     classes (K) uint8, probabilities (K) float32
//   occupancy/  classes uint8, occupied, others float32 (levels, rows, columns), free (360) float32
//   conditions/ probabilities (values) float64, in the order of the taxonomy; 0 long if one of them is not finite
//   not_finite  (outputs) int64, by the outputs' names: numbers that are NaN or infinite, or detections with one
class Decoder {
   public:
    explicit Decoder(const Manifest &manifest);
    void decode(const Arrays &outputs, Arrays &results);

   private:
    // Returns how many were left out, because a number of the box or its score is not finite.
    int64_t decode_detections(const Arrays &outputs, Arrays &results);
    void write_detections(const Candidates &all, const Array &attributes, Arrays &results) const;
    void decode_conditions(const Arrays &outputs, Arrays &results) const;
    void decode_points(const Arrays &outputs, Arrays &results) const;
    void decode_voxels(const Arrays &outputs, Arrays &results);

    std::optional<bool> velocity_;  // of detections: whether it is known
    std::optional<Suppressor> nms_;
    bool map_ = false;
    std::optional<double> limit_;  // of conditions: a kind farther from the training data has equal probabilities
    std::vector<size_t> values_;   // of each kind of condition
    std::optional<uint8_t> none_;  // of points
    std::optional<float> levels_;  // of voxels
    Shape shape_;                  // buffers
    std::vector<float> scores_;
    std::vector<size_t> kept_, order_;  // candidates that stay, and their places, best first
};

// Whether all numbers of the outputs are finite.
bool all_finite(const Arrays &outputs);

}  // namespace tessera
