#include <algorithm>
#include <array>
#include <cstring>

#include "inputs.hpp"

namespace tessera {

namespace {

constexpr size_t kValues = 5;  // of a point

// Cells in double precision of points whose coordinates are inside in single precision, as numpy compares them.
struct DoubleCells {
    const Pillars &s;
    const int outside = s.rows * s.columns;
    const float x0 = float(s.x[0]), x1 = float(s.x[1]), y0 = float(s.y[0]), y1 = float(s.y[1]), z0 = float(s.z[0]),
                z1 = float(s.z[1]);

    // Of places that rounding puts on the far edge, or beyond if the range is no multiple of the cell, the last.
    int along(float place, double low, int count) const {
        return std::min(static_cast<int>((double(place) - low) / s.cell), count - 1);
    }
    int operator()(const float *p) const {
        const bool inside =
            (p[0] >= x0) & (p[0] < x1) & (p[1] >= y0) & (p[1] < y1) & (p[2] >= z0) & (p[2] < z1);  // false for NaN
        return inside ? along(p[1], s.y[0], s.rows) * s.columns + along(p[0], s.x[0], s.columns) : outside;
    }
};

// Cells in single precision as in `dynamic_voxelize_forward` of mmcv.
struct SingleCells {
    const Pillars &s;
    const int outside = s.rows * s.columns;
    const float x0 = float(s.x[0]), y0 = float(s.y[0]), z0 = float(s.z[0]), cell = float(s.cell),
                height = float(s.z[1] - s.z[0]), columns = float(s.columns), rows = float(s.rows);

    int operator()(const float *p) const {
        const float x = (p[0] - x0) / cell, y = (p[1] - y0) / cell, z = (p[2] - z0) / height;
        const bool inside = (x >= 0) & (x < columns) & (y >= 0) & (y < rows) & (z >= 0) & (z < 1);
        return inside ? static_cast<int>(y) * s.columns + static_cast<int>(x) : outside;
    }
};

}  // namespace

Grouper::Grouper(const Pillars &settings)
    : settings_(settings),
      outside_(settings.rows * settings.columns),
      totals_(outside_ + 1),
      row_of_cell_(outside_ + 1),
      filled_(settings.most) {
    for (const auto &[low, high] : {settings.x, settings.y})  // else a point may be in no cell that an int counts
        if (!((float(low) - low) / settings.cell > -1 && (float(high) - low) / settings.cell < INT32_MAX))
            throw std::invalid_argument("the cells of the grid are too small for its range");
}

// The loops over points and cells have no branches that depend on the cell: it is a random one for the processor, and
// a branch that it does not foresee costs as much as ten steps.

template <typename Rule>
void Grouper::count_points(const Rule &cell_of, const float *points, size_t n) {
    std::fill(totals_.begin(), totals_.end(), 0);
    for (size_t i = 0; i < n; ++i) ++totals_[cells_of_points_[i] = cell_of(points + kValues * i)];
    totals_[outside_] = 0;
}

// Which cells stay: those with the most points, of equal ones the first.
Grouper::Limit Grouper::limit() const {
    const auto above = [this](int least) {
        int found = 0;
        for (int32_t total : totals_) found += total > least;
        return found;
    };
    if (above(0) <= settings_.most) return {0, 0};
    int low = 1, high = 1;  // the least total of which no more cells have more than there are pillars
    for (int32_t total : totals_) high = std::max(high, total);
    while (low < high) {
        const int middle = low + (high - low) / 2;
        if (above(middle) > settings_.most) low = middle + 1;
        else high = middle;
    }
    return {low, settings_.most - above(low)};
}

// Leaves only those cells whose first point comes first.
void Grouper::leave_first(size_t n) {
    std::fill(row_of_cell_.begin(), row_of_cell_.end(), 0);
    row_of_cell_[outside_] = 1;
    int found = 0;
    size_t i = 0;
    for (; i < n && found < settings_.most; ++i) {
        int32_t &seen = row_of_cell_[cells_of_points_[i]];
        found += seen == 0;
        seen = 1;
    }
    for (size_t cell = 0; cell < totals_.size(); ++cell) totals_[cell] *= row_of_cell_[cell];
}

int Grouper::assign_rows(Limit limit, int32_t *cells) {
    int rows = 0, cell = 0;
    for (; cell < outside_ && rows < settings_.most; ++cell) {
        const bool equal = (totals_[cell] == limit.least) & (limit.equal > 0);
        const bool kept = (totals_[cell] > limit.least) | equal;
        limit.equal -= equal;
        cells[rows] = cell;
        row_of_cell_[cell] = kept ? rows : -1;
        rows += kept;
    }
    std::fill(row_of_cell_.begin() + cell, row_of_cell_.end(), -1);
    std::fill(cells + rows, cells + settings_.most, outside_);
    return rows;
}

void Grouper::fill(const float *points, size_t n, float *pillar_points) {
    constexpr size_t kBlock = 1024;  // points whose pillars are looked up before any is copied
    std::array<int32_t, kBlock> row, index;
    std::fill(filled_.begin(), filled_.end(), 0);
    for (size_t start = 0; start < n; start += kBlock) {
        size_t kept = 0;
        for (size_t i = start; i < std::min(n, start + kBlock); ++i) {
            row[kept] = row_of_cell_[cells_of_points_[i]];
            index[kept] = static_cast<int32_t>(i);
            kept += row[kept] >= 0;
        }
        for (size_t k = 0; k < kept; ++k) {
            int32_t &filled = filled_[row[k]];
            if (filled == settings_.points) continue;
            const size_t place = static_cast<size_t>(row[k]) * settings_.points + filled++;
            std::memcpy(pillar_points + kValues * place, points + kValues * index[k], kValues * sizeof(float));
        }
    }
}

int Grouper::group(const float *points, size_t n, float *pillar_points, int32_t *counts, int32_t *cells) {
    if (cells_of_points_.size() < n) cells_of_points_.resize(n);
    if (settings_.fullest) {
        count_points(DoubleCells{settings_}, points, n);
    } else {
        count_points(SingleCells{settings_}, points, n);
        leave_first(n);
    }
    const int rows = assign_rows(settings_.fullest ? limit() : Limit{0, 0}, cells);
    fill(points, n, pillar_points);
    for (int row = 0; row < settings_.most; ++row) {
        const int before = std::clamp<int>(counts[row], 0, settings_.points);
        if (filled_[row] < before) {
            float *pillar = pillar_points + kValues * row * settings_.points;
            std::fill(pillar + kValues * filled_[row], pillar + kValues * before, 0.0F);
        }
        counts[row] = filled_[row];
    }
    return rows;
}

}  // namespace tessera
