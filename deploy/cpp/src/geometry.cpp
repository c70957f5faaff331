#include "geometry.hpp"

#include <algorithm>
#include <cmath>

namespace tessera {

namespace {

// Terms of a sum are added from left to right.
template <size_t kRows, size_t kInner, size_t kColumns>
std::array<double, kRows * kColumns> product(const std::array<double, kRows * kInner> &a,
                                             const std::array<double, kInner * kColumns> &b) {
    std::array<double, kRows * kColumns> result;
    for (size_t row = 0; row < kRows; ++row) {
        for (size_t column = 0; column < kColumns; ++column) {
            double sum = a[row * kInner] * b[column];
            for (size_t k = 1; k < kInner; ++k) sum += a[row * kInner + k] * b[k * kColumns + column];
            result[row * kColumns + column] = sum;
        }
    }
    return result;
}

}  // namespace

Matrix4 multiply(const Matrix4 &a, const Matrix4 &b) {
    return product<4, 4, 4>(a, b);
}

Matrix34 multiply(const Matrix3 &a, const Matrix34 &b) {
    return product<3, 3, 4>(a, b);
}

Matrix4 inverse(const Matrix4 &matrix) {
    const auto [a, b, c, x, d, e, f, y, g, h, i, z, k0, k1, k2, k3] = matrix;
    const double cofactors[3][3] = {{e * i - f * h, c * h - b * i, b * f - c * e},
                                    {f * g - d * i, a * i - c * g, c * d - a * f},
                                    {d * h - e * g, b * g - a * h, a * e - b * d}};
    const double determinant = a * cofactors[0][0] + b * cofactors[1][0] + c * cofactors[2][0];
    Matrix4 result = kIdentity;
    for (size_t row = 0; row < 3; ++row) {
        const double p = cofactors[row][0] / determinant, q = cofactors[row][1] / determinant,
                     r = cofactors[row][2] / determinant;
        const std::array<double, 4> values = {p, q, r, -(p * x + q * y + r * z)};
        std::copy(values.begin(), values.end(), &result[4 * row]);
    }
    return result;
}

bool is_rigid(const Matrix4 &pose, double largest_error, double far, double upright) {
    // Written so that a NaN is not rigid.
    if (!std::all_of(pose.begin(), pose.end(), [far](double value) { return std::abs(value) < far; })) return false;
    const auto [a, b, c, x, d, e, f, y, g, h, i, z, k0, k1, k2, k3] = pose;
    const std::array<std::array<double, 3>, 3> rows = {{{a, b, c}, {d, e, f}, {g, h, i}}};
    const auto small = [largest_error](double error) { return std::abs(error) < largest_error; };
    bool rigid = small(k0) && small(k1) && small(k2) && small(k3 - 1);
    for (const auto &one : rows)
        for (const auto &other : rows)
            rigid = rigid && small(one[0] * other[0] + one[1] * other[1] + one[2] * other[2] - (&one == &other));
    const double determinant = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g);
    return rigid && determinant > 0 && i >= upright;
}

Matrix34 image_from_reference(const Camera &camera, const Matrix4 &global_from_reference) {
    const Matrix4 camera_from_global = inverse(multiply(camera.global_from_ego, camera.ego_from_camera));
    const Matrix4 camera_from_reference = multiply(camera_from_global, global_from_reference);
    Matrix34 rows;
    std::copy_n(camera_from_reference.begin(), rows.size(), rows.begin());
    return multiply(camera.intrinsics, rows);
}

}  // namespace tessera
