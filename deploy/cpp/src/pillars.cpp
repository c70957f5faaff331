#include <algorithm>
#include <cstring>

#include "inputs.hpp"

namespace tessera {

namespace {

constexpr size_t kValues = 5;  // of a point

// Cells in double precision of points whose coordinates are inside in single precision, as numpy compares them.
class Cells {
   public:
    explicit Cells(const Pillars &s) : s_(s) {
        for (int i : {0, 1}) x_[i] = float(s.x[i]), y_[i] = float(s.y[i]), z_[i] = float(s.z[i]);
    }
    int operator()(const float *p) const {
        const bool inside = (p[0] >= x_[0]) & (p[0] < x_[1]) & (p[1] >= y_[0]) & (p[1] < y_[1]) & (p[2] >= z_[0]) &
                            (p[2] < z_[1]);
        if (!inside) return s_.rows * s_.columns;
        // Points that rounding puts on the far edge, or beyond if the range is no multiple of the cell, are in the last.
        const int column = std::min(static_cast<int>((double(p[0]) - s_.x[0]) / s_.cell), s_.columns - 1);
        const int row = std::min(static_cast<int>((double(p[1]) - s_.y[0]) / s_.cell), s_.rows - 1);
        return row * s_.columns + column;
    }

   private:
    const Pillars s_;
    float x_[2], y_[2], z_[2];
};

// Cells in single precision as in `dynamic_voxelize_forward` of mmcv.
class SingleCells {
   public:
    explicit SingleCells(const Pillars &s)
        : columns_(s.columns),
          low_{float(s.x[0]), float(s.y[0]), float(s.z[0])},
          cell_{float(s.cell), float(s.cell), float(s.z[1] - s.z[0])},
          count_{float(s.columns), float(s.rows), 1},
          outside_(s.rows * s.columns) {}
    int operator()(const float *p) const {
        float place[3];
        bool inside = true;
        for (int axis = 0; axis < 3; ++axis) {
            place[axis] = (p[axis] - low_[axis]) / cell_[axis];
            inside &= (place[axis] >= 0) & (place[axis] < count_[axis]);
        }
        return inside ? static_cast<int>(place[1]) * columns_ + static_cast<int>(place[0]) : outside_;
    }

   private:
    int columns_;
    float low_[3], cell_[3], count_[3];
    int outside_;
};

}  // namespace

Grouper::Grouper(const Pillars &settings)
    : settings_(settings),
      totals_(static_cast<size_t>(settings.rows) * settings.columns),
      row_of_cell_(totals_.size()),
      filled_(settings.most) {}

template <typename Rule>
int Grouper::count_points(const Rule &cell_of, const float *points, size_t n, int32_t *cells_of_points) {
    const int outside = static_cast<int>(totals_.size());
    int occupied = 0;
    for (size_t i = 0; i < n; ++i) {
        const int cell = cells_of_points[i] = cell_of(points + kValues * i);
        if (cell == outside) continue;
        if (totals_[cell]++ == 0) row_of_cell_[cell] = occupied++;
    }
    return occupied;
}

Grouper::Limit Grouper::limit(int occupied) const {
    if (occupied <= settings_.most) return {0, 0};
    const auto above = [this](int least) {
        int found = 0;
        for (int32_t total : totals_) found += total > least;
        return found;
    };
    int low = 0, high = 0;  // the least total of which no more cells have more than there are pillars
    for (int32_t total : totals_) high = std::max(high, total);
    while (low < high) {
        const int middle = low + (high - low) / 2;
        if (above(middle) > settings_.most) low = middle + 1;
        else high = middle;
    }
    return {low, settings_.most - above(low)};
}

int Grouper::assign_rows(int occupied, int32_t *cells) {
    auto [least, equal] = settings_.fullest ? limit(occupied) : Limit{0, 0};
    int rows = 0;
    for (size_t cell = 0; cell < totals_.size(); ++cell) {
        const int total = totals_[cell];
        if (total == 0) continue;
        totals_[cell] = 0;
        const bool kept = settings_.fullest ? total > least || (total == least && equal-- > 0)
                                            : row_of_cell_[cell] < settings_.most;
        row_of_cell_[cell] = kept ? rows : -1;
        if (kept) cells[rows++] = static_cast<int32_t>(cell);
    }
    return rows;
}

int Grouper::group(const float *points, size_t n, float *pillar_points, int32_t *counts, int32_t *cells,
                   int32_t *cells_of_points) {
    if (cells_of_points == nullptr) {
        if (cell_of_point_.size() < n) cell_of_point_.resize(n);
        cells_of_points = cell_of_point_.data();
    }
    const int occupied = settings_.fullest ? count_points(Cells(settings_), points, n, cells_of_points)
                                           : count_points(SingleCells(settings_), points, n, cells_of_points);
    const int rows = assign_rows(occupied, cells), size = settings_.points, outside = static_cast<int>(totals_.size());
    std::fill(filled_.begin(), filled_.end(), 0);
    for (size_t i = 0; i < n; ++i) {
        if (cells_of_points[i] == outside) continue;
        const int row = row_of_cell_[cells_of_points[i]];
        if (row < 0 || filled_[row] == size) continue;
        const size_t place = static_cast<size_t>(row) * size + filled_[row]++;
        std::memcpy(pillar_points + kValues * place, points + kValues * i, kValues * sizeof(float));
    }
    for (int row = 0; row < settings_.most; ++row) {
        const int before = std::clamp<int>(counts[row], 0, size);
        if (filled_[row] < before) {
            float *pillar = pillar_points + kValues * row * size;
            std::fill(pillar + kValues * filled_[row], pillar + kValues * before, 0.0F);
        }
        counts[row] = filled_[row];
    }
    std::fill(cells + rows, cells + settings_.most, outside);
    return rows;
}

}  // namespace tessera
