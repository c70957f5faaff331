#include <algorithm>
#include <cmath>
#include <cstring>

#include "error.hpp"
#include "inputs.hpp"

namespace tessera {

namespace {

constexpr int kSteps = 256;  // of a pixel; sums of a row then have 16 bits, and of a picture 24

// The rounded mean of each square of pixels of one row of squares; the last row and column are repeated beyond the end.
template <typename Sum>
void reduce_row(const uint8_t *rgb, int height, int width, int factor, int row, std::vector<Sum> &sums, uint8_t *into) {
    const size_t bytes = static_cast<size_t>(width) * 3, squares = (width + factor - 1) / factor;
    std::fill(sums.begin(), sums.end(), Sum{0});
    for (int i = 0; i < factor; ++i) {
        const uint8_t *line = rgb + bytes * std::min(row * factor + i, height - 1);
        for (size_t k = 0; k < bytes; ++k) sums[k] = static_cast<Sum>(sums[k] + line[k]);
    }
    for (size_t k = bytes; k < squares * factor * 3; ++k) sums[k] = sums[k - 3];
    const uint32_t area = static_cast<uint32_t>(factor) * factor;
    // Of numbers below 2^16 and areas of at most 2^8 this is the quotient; dividing takes far longer.
    const uint64_t inverse = ((uint64_t{1} << 32) + area - 1) / area;
    const Sum *square = sums.data();
    for (size_t k = 0; k < squares; ++k, square += 3 * static_cast<size_t>(factor)) {
        for (int channel = 0; channel < 3; ++channel) {
            uint32_t total = area / 2;
            for (int i = 0; i < factor; ++i) total += square[3 * i + channel];
            *into++ = static_cast<uint8_t>(sizeof(Sum) == 2 ? total * inverse >> 32 : total / area);
        }
    }
}

}  // namespace

Warper::Warper(const Pictures &settings) : settings_(settings), rows_(settings.height), columns_(settings.width) {
    if (settings.steps != kSteps) {
        throw refused("manifest.json: pictures with ", settings.steps, " steps of a pixel, this library makes ", kSteps,
                      ": use the library of the release that wrote the bundle");
    }
}

// The two pixels on both sides of places along an axis, and their weights; 0 outside of the picture.
void Warper::tap(double scale, double shift, int count, std::vector<Tap> &taps) {
    for (size_t i = 0; i < taps.size(); ++i) {
        const double place = std::clamp((static_cast<double>(i) - shift) / scale, -2.0, count + 1.0);
        const int steps = static_cast<int>(std::rint(place * kSteps)) + 2 * kSteps;  // not negative
        const int low = steps / kSteps - 2, rest = steps % kSteps;
        taps[i] = {std::clamp(low, 0, count - 1), std::clamp(low + 1, 0, count - 1),
                   static_cast<uint16_t>(low >= 0 && low < count ? kSteps - rest : 0),
                   static_cast<uint16_t>(low >= -1 && low < count - 1 ? rest : 0)};
    }
}

const uint8_t *Warper::reduce(const uint8_t *rgb, int height, int width, int factor) {
    const size_t squares = (width + factor - 1) / factor, sums = squares * factor * 3;
    reduced_.resize(squares * 3 * ((height + factor - 1) / factor));
    if (factor > 16) long_sums_.resize(sums);
    else sums_.resize(sums);
    for (int row = rows_.front().low; row <= rows_.back().high; ++row) {  // the picture shows no others
        uint8_t *into = reduced_.data() + squares * 3 * row;
        if (factor > 16) reduce_row(rgb, height, width, factor, row, long_sums_, into);
        else reduce_row(rgb, height, width, factor, row, sums_, into);
    }
    return reduced_.data();
}

Matrix3 Warper::warp(const uint8_t *rgb, int height, int width, uint8_t *into) {
    double scale = static_cast<double>(settings_.width) / width;
    double x = 0.5 * scale - 0.5, y = x + settings_.height - scale * height;
    const Matrix3 affine = {scale, 0, x, 0, scale, y, 0, 0, 1};
    const int factor = static_cast<int>(1 / std::sqrt(scale * scale));
    if (factor > 1) {
        const double middle = 0.5 * factor - 0.5;
        x += scale * middle, y += scale * middle, scale *= factor;
        const int rows = (height + factor - 1) / factor, columns = (width + factor - 1) / factor;
        tap(scale, y, rows, rows_);
        rgb = reduce(rgb, height, width, factor);
        width = columns;
    } else {
        tap(scale, y, height, rows_);
    }
    tap(scale, x, width, columns_);
    const size_t bytes = static_cast<size_t>(width) * 3;
    mixed_.resize(bytes);
    for (const Tap &row : rows_) {
        const uint8_t *low = rgb + bytes * row.low, *high = rgb + bytes * row.high;
        for (size_t k = 0; k < bytes; ++k) {
            mixed_[k] = static_cast<uint16_t>(low[k] * row.low_weight + high[k] * row.high_weight);
        }
        for (const Tap &column : columns_) {
            const uint16_t *left = mixed_.data() + size_t{3} * column.low,
                           *right = mixed_.data() + size_t{3} * column.high;
            for (int channel = 0; channel < 3; ++channel) {
                const uint32_t sum = uint32_t{left[channel]} * column.low_weight + right[channel] * column.high_weight;
                *into++ = static_cast<uint8_t>((sum + kSteps * kSteps / 2) / (kSteps * kSteps));
            }
        }
    }
    return affine;
}

}  // namespace tessera
