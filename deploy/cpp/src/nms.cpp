#include "nms.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "error.hpp"

namespace tessera {

namespace {

// Clips the polygon to the first box by clamping it in that box's frame, as the Python function, and adds in numpy's
// order.
double rotated_iou(const Footprint &one, const Footprint &other) {
    const double x = other.x - one.x, y = other.y - one.y, sin = one.sine, cos = one.cosine;
    const double middle[2] = {x * cos + y * sin, y * cos - x * sin};
    const double turned_sin = other.sine * cos - other.cosine * sin, turned_cos = other.cosine * cos + other.sine * sin;
    const double ahead[2] = {other.length / 2 * turned_cos, other.length / 2 * turned_sin};
    const double left[2] = {other.width / 2 * -turned_sin, other.width / 2 * turned_cos};
    const double half[2] = {one.length / 2, one.width / 2};
    double corners[4][2], outline[2][20];
    for (int axis = 0; axis < 2; ++axis) {
        corners[0][axis] = ahead[axis] - left[axis] + middle[axis];
        corners[1][axis] = ahead[axis] + left[axis] + middle[axis];
        corners[2][axis] = left[axis] - ahead[axis] + middle[axis];
        corners[3][axis] = -ahead[axis] - left[axis] + middle[axis];
    }
    for (int i = 0; i < 4; ++i) {
        const double *corner = corners[i], *next = corners[(i + 1) % 4];
        const double side[2] = {next[0] - corner[0], next[1] - corner[1]};
        double crossed[5] = {0};  // where the side meets the lines of the first box's sides
        for (int k = 0; k < 4; ++k) {
            const int axis = k % 2;
            const double to_line = (k < 2 ? -half[axis] : half[axis]) - corner[axis];
            crossed[k + 1] = side[axis] != 0 ? std::clamp(to_line / side[axis], 0.0, 1.0) : 0;
        }
        std::sort(crossed + 1, crossed + 5);
        for (int k = 0; k < 5; ++k) {
            for (int axis = 0; axis < 2; ++axis) {
                const double place = corner[axis] + crossed[k] * side[axis];
                outline[axis][5 * i + k] = std::min(std::max(place, -half[axis]), half[axis]);
            }
        }
    }
    double terms[20];
    for (int i = 0; i < 20; ++i) {
        const int next = (i + 1) % 20;
        terms[i] = outline[0][i] * outline[1][next] - outline[0][next] * outline[1][i];
    }
    for (int i = 0; i < 8; ++i) terms[i] += terms[i + 8];
    double sum = ((terms[0] + terms[1]) + (terms[2] + terms[3])) + ((terms[4] + terms[5]) + (terms[6] + terms[7]));
    for (int i = 16; i < 20; ++i) sum += terms[i];
    const double shared = sum / 2, both = one.width * one.length + other.width * other.length - shared;
    return both > 0 ? shared / both : 0;
}

// Whether the IoU is `largest` or more.
bool overlap(const Footprint &one, const Footprint &other, double largest) {
    const double x = other.x - one.x, y = other.y - one.y, reach = other.reach + one.reach;
    return x * x + y * y < reach * reach && rotated_iou(one, other) >= largest;
}

// Marks those of n boxes, best first, that a better remaining one suppresses, and those behind the first `most` others.
template <typename Suppresses>
void greedy(size_t n, size_t most, const Suppresses &suppresses, std::vector<uint8_t> &gone) {
    gone.assign(n, 0);
    for (size_t i = 0, kept = 0; i < n; ++i) {
        if (kept == most) gone[i] = 1;
        if (gone[i]) continue;
        ++kept;
        for (size_t k = i + 1; k < n; ++k) gone[k] = gone[k] || suppresses(i, k);
    }
}

bool is_first(const Json &settings, const char *key, const char *first, const char *other) {
    const Json &word = settings.at(key);
    if (word != first && word != other)
        throw std::invalid_argument(text("results: suppression: ", key, " is neither ", first, " nor ", other));
    return word == first;
}

template <typename T>
T value_or(const Json &settings, const char *name, const T &otherwise) {
    return settings.at(name).is_null() ? otherwise : settings.at(name).get<T>();
}

}  // namespace

Footprint footprint(double x, double y, double width, double length, double sine, double cosine) {
    const double scale = std::sqrt(sine * sine + cosine * cosine);
    const double reach = std::sqrt(width * width + length * length) / 2;
    if (!(scale > 0)) return {x, y, width, length, 0, 1, reach};
    return {x, y, width, length, sine / scale, cosine / scale, reach};
}

Suppressor::Suppressor(const Json &settings)
    : threshold_(settings.at("threshold").get<float>()),
      low_(value_or(settings, "low", std::vector<double>())),
      high_(value_or(settings, "high", std::vector<double>())),
      circle_(is_first(settings, "kind", "circle", "rotated")),
      by_class_(is_first(settings, "within", "class", "group")),
      radii_(settings.at("radii").get<std::vector<double>>()),
      overlap_(settings.at("overlap").get<double>()),
      most_(value_or(settings, "most", std::numeric_limits<size_t>::max())),
      total_(value_or(settings, "total", std::numeric_limits<size_t>::max())) {
    if (low_.size() != 3 || high_.size() != 3) low_.clear(), high_.clear();
}

void Suppressor::run(const Candidates &candidates, size_t first, size_t last, int64_t group,
                     std::vector<size_t> &kept) {
    ranked_.clear();
    for (size_t i = first; i < last; ++i) {
        const float *box = candidates.boxes + candidates.width * i;
        bool stays = candidates.scores[i] > threshold_;
        for (size_t axis = 0; axis < low_.size(); ++axis) {
            stays = stays && box[axis] >= low_[axis] && box[axis] <= high_[axis];
        }
        if (!stays) continue;
        const int64_t part = by_class_ ? integer_at(candidates.labels, i) : group;
        ranked_.push_back({part, candidates.scores[i], i});
    }
    std::sort(ranked_.begin(), ranked_.end(), [](const Ranked &a, const Ranked &b) {
        return a.part != b.part ? a.part < b.part : a.score != b.score ? a.score > b.score : a.index < b.index;
    });
    for (size_t start = 0, end = 0; start < ranked_.size(); start = end) {
        while (end < ranked_.size() && ranked_[end].part == ranked_[start].part) ++end;
        suppress(candidates, ranked_.data() + start, end - start);
        for (size_t i = start; i < end; ++i) {
            if (!gone_[i - start]) kept.push_back(ranked_[i].index);
        }
    }
}

void Suppressor::suppress(const Candidates &candidates, const Ranked *ranked, size_t n) {
    const auto box = [&](size_t i) { return candidates.boxes + candidates.width * ranked[i].index; };
    if (circle_) {
        const bool known = ranked->part >= 0 && ranked->part < static_cast<int64_t>(radii_.size());
        const double radius = known ? radii_[ranked->part] : 0;
        const auto near = [&box, nearest = static_cast<float>(radius * radius)](size_t i, size_t k) {
            const float x = box(i)[0] - box(k)[0], y = box(i)[1] - box(k)[1];
            return x * x + y * y <= nearest;
        };
        greedy(n, most_, near, gone_);
    } else {
        outlines_.clear();
        for (size_t i = 0; i < n; ++i) {
            const float *b = box(i);
            outlines_.push_back(footprint(b[0], b[1], b[3], b[4], b[6], b[7]));
        }
        const auto same = [this](size_t i, size_t k) { return overlap(outlines_[i], outlines_[k], overlap_); };
        greedy(n, most_, same, gone_);
    }
}

int64_t integer_at(const Array &array, size_t index) {
    return visit(array, [index](const auto *values) { return static_cast<int64_t>(values[index]); });
}

}  // namespace tessera
