// Non-maximum suppression of upright boxes by their footprints (perception/tasks/detection/nms.py).
#pragma once

#include <string>
#include <vector>

#include "array.hpp"
#include "manifest.hpp"

namespace tessera {

// A box seen from above; sine and cosine are those of its heading, and reach is half the diagonal.
struct Footprint {
    double x, y, width, length, sine, cosine, reach;
};

// The heading of sine and cosine times any positive factor; 0 0 is ahead.
Footprint footprint(double x, double y, double width, double length, double sine, double cosine);

// The boxes of one frame, each a row of `width` numbers: x y z, w l h, sine and cosine, and the velocity.
struct Candidates {
    const float *boxes, *scores;
    size_t width;
    const Array &labels;
};

class Suppressor {
   public:
    explicit Suppressor(const Json &settings);
    // Appends the indices of the remaining boxes of a group, [first, last), part by part and best first.
    void run(const Candidates &candidates, size_t first, size_t last, int64_t group, std::vector<size_t> &kept);
    size_t total() const { return total_; }

   private:
    struct Ranked {
        int64_t part;
        float score;
        size_t index;
    };
    // Sets gone_ for boxes of one part.
    void suppress(const Candidates &candidates, const Ranked *ranked, size_t n);

    float threshold_;
    std::vector<double> low_, high_;  // none: all places
    bool circle_, by_class_;
    std::vector<double> radii_;
    double overlap_;
    size_t most_, total_;
    std::vector<Ranked> ranked_;
    std::vector<Footprint> outlines_;
    std::vector<uint8_t> gone_;
};

int64_t integer_at(const Array &array, size_t index);

}  // namespace tessera
