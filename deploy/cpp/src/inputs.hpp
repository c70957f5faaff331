// A frame becomes the network's inputs (perception/sensors/inputs.py).
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "array.hpp"
#include "geometry.hpp"
#include "manifest.hpp"

namespace tessera {

// Groups points (N, 5) by cell into pillar_points (1, P, M, 5), pillar_counts (1, P) and pillar_cells (1, P) with
// padding behind them, as perception/sensors/lidar/pillars.py. Returns the number of pillars.
class Grouper {
   public:
    explicit Grouper(const Pillars &settings);
    // pillar_points and counts: zeros, or what a call wrote there; only what is no longer a point becomes padding.
    int group(const float *points, size_t n, float *pillar_points, int32_t *counts, int32_t *cells);
    // The cell of each point of the latest call, rows * columns outside of the grid.
    const int32_t *cells_of_points() const { return cells_of_points_.data(); }

   private:
    struct Limit {
        int least;  // cells with more points stay
        int equal;  // and so many of those with as many points
    };
    template <typename Rule>
    void count_points(const Rule &cell_of, const float *points, size_t n);
    Limit limit() const;
    void leave_first(size_t n);
    int assign_rows(Limit limit, int32_t *cells);
    void fill(const float *points, size_t n, float *pillar_points);

    Pillars settings_;
    int outside_;                       // the cell of points outside of the grid, behind the others
    std::vector<int32_t> totals_;       // points in each cell
    std::vector<int32_t> row_of_cell_;  // the pillar of each cell; -1: none
    std::vector<int32_t> filled_;       // points in each pillar
    std::vector<int32_t> cells_of_points_;
};

// Writes the network's picture (height, width, 3) of a recorded one, as `fit_width` and `warp` of
// perception/sensors/camera/picture.py, and returns the affine matrix by which it did.
class Warper {
   public:
    explicit Warper(const Pictures &settings);
    Matrix3 warp(const uint8_t *rgb, int height, int width, uint8_t *into);

   private:
    struct Tap {
        int low, high;  // pixels on both sides of a place
        uint16_t low_weight, high_weight;
    };
    static void tap(double scale, double shift, int count, std::vector<Tap> &taps);
    const uint8_t *reduce(const uint8_t *rgb, int height, int width, int factor);

    Pictures settings_;
    std::vector<Tap> rows_, columns_;
    std::vector<uint8_t> reduced_;
    std::vector<uint16_t> sums_, mixed_;
    std::vector<uint32_t> long_sums_;
};

class Preprocessor {
   public:
    explicit Preprocessor(const Manifest &manifest);

    // The inputs of a frame in which all can be used (`admit`); a missing sensor has padding and zeros. The number of
    // pillars is that of the manifest. `inputs` are from `no_sensors` or an earlier frame, and nothing else wrote
    // there.
    void prepare(const Frame &frame, Arrays &inputs);

   private:
    void fill_points(const Frame &frame, Arrays &inputs) const;
    void fill_cameras(const Frame &frame, Arrays &inputs);

    Preprocessing settings_;
    std::optional<Grouper> grouper_;
    std::optional<Warper> warper_;
};

// The inputs that `prepare` fills, with padding and zeros.
Arrays no_sensors(const Manifest &manifest);

// Leaves out of a frame what cannot be used (perception/scene/admission.py, without its findings): points that are not
// finite, cameras that are not the network's or have impossible pictures or matrices. A frame without a possible pose
// gets that of the frame before, and so do its cameras; one without a possible time gets the time before.
class Admitter {
   public:
    explicit Admitter(const Manifest &manifest);
    // Returns whether the frame had a pose of its own. The points of the result lie in this object until the next call.
    bool admit(Frame &frame);
    void restart() { reference_ = ego_ = kIdentity, timestamp_ = 0; }

   private:
    void leave_out_points(Frame &frame);
    bool is_usable(const Camera &camera) const;

    Admission settings_;
    std::vector<std::string> cameras_;
    Matrix4 reference_ = kIdentity, ego_ = kIdentity;  // global from these, of the frame before
    int64_t timestamp_ = 0;
    std::string scene_;
    std::vector<float> points_;
    std::vector<uint8_t> sweeps_;
};

}  // namespace tessera
