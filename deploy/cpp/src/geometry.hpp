// Poses and frames. Sums are in a fixed order, so that results are those of perception/geometry.py in every bit.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace tessera {

using Matrix3 = std::array<double, 9>;    // row-major
using Matrix34 = std::array<double, 12>;  // row-major
using Matrix4 = std::array<double, 16>;   // row-major; the last row is 0 0 0 1

inline constexpr Matrix4 kIdentity = {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1};

// The product of two poses.
Matrix4 multiply(const Matrix4 &a, const Matrix4 &b);
Matrix34 multiply(const Matrix3 &a, const Matrix34 &b);

// The inverse of an affine matrix, by its cofactors; not finite if there is none.
Matrix4 inverse(const Matrix4 &matrix);

// Whether it is a rotation and translation with finite numbers, with a z axis of at least this z.
bool is_rigid(const Matrix4 &pose, double largest_error, double far, double upright = -1);

struct Camera {
    std::string_view name;
    const uint8_t *rgb;  // (height, width, 3), as recorded
    int height, width;
    Matrix3 intrinsics;
    Matrix4 ego_from_camera, global_from_ego;
};

// Projection of reference points (at the frame's time) to recorded pixels, through the global frame, because the
// vehicle moves between the LiDAR sweep and the exposure.
Matrix34 image_from_reference(const Camera &camera, const Matrix4 &global_from_reference);

// Of a kind of sensor that the host knows alone.
struct Input {
    std::string_view name;
    const void *data;
    size_t bytes;
};

struct Frame {
    std::string_view scene;
    int64_t timestamp = 0;  // us
    Matrix4 global_from_reference = kIdentity, global_from_ego = kIdentity;
    const float *points = nullptr;            // (N, 5); none: the LiDAR is missing
    const uint8_t *sweep_of_point = nullptr;  // (N); none: all are of the keyframe
    size_t point_count = 0;
    std::vector<Camera> cameras;
    std::vector<Input> inputs;
};

}  // namespace tessera
