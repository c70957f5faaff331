// A frame becomes the network's inputs (perception/sensors/inputs.py).
#pragma once

#include <vector>

#include "array.hpp"
#include "geometry.hpp"
#include "manifest.hpp"

namespace tessera {

// Groups points (N, 5) by cell into pillar_points (1, P, M, 5), pillar_counts (1, P) and pillar_cells (1, P) with padding
// behind them, as perception/sensors/lidar/pillars.py. Returns the number of pillars.
class Grouper {
   public:
    explicit Grouper(const Pillars &settings);
    // cells_of_points: (N), overwritten with the cell of each point, rows * columns outside of the grid; may be null.
    int group(const float *points, size_t n, float *pillar_points, int32_t *counts, int32_t *cells,
              int32_t *cells_of_points);

   private:
    Pillars settings_;
    std::vector<int32_t> cell_of_point_, occupied_, scratch_;  // and whatever it takes to allocate nothing per frame
};

// Writes the network's picture (height, width, 3) of a recorded one, as `fit_width` and `warp` of
// perception/sensors/inputs.py, and the affine matrix by which it did.
class Warper {
   public:
    explicit Warper(const Pictures &settings);
    Matrix3 warp(const uint8_t *rgb, int height, int width, uint8_t *into);

   private:
    Pictures settings_;
    std::vector<uint8_t> reduced_;
};

class Preprocessor {
   public:
    explicit Preprocessor(const Manifest &manifest);

    // The inputs of a frame in which all can be used (`admit`); a missing sensor has padding and zeros. The number of
    // pillars is that of the manifest.
    void prepare(const Frame &frame, Arrays &inputs);

   private:
    Preprocessing settings_;
    // Grouper, Warper and buffers.
};

// The inputs that `prepare` fills, with the shapes of the manifest.
Arrays no_sensors(const Manifest &manifest);

// Leaves out of a frame what cannot be used (perception/scene/admission.py, without its findings): points that are not
// finite, cameras that are not the network's or have impossible pictures or matrices. A frame without a possible pose
// gets that of the frame before, and so do its cameras.
class Admitter {
   public:
    explicit Admitter(const Manifest &manifest);
    // Returns whether the frame had a pose of its own. The points of the result lie in this object until the next call.
    bool admit(Frame &frame);

   private:
    Admission settings_;
    std::vector<std::string> cameras_;
    Matrix4 reference_ = kIdentity, ego_ = kIdentity;  // global from these, of the frame before
    std::string scene_;
    std::vector<float> points_;
    std::vector<uint8_t> sweeps_;
};

}  // namespace tessera
