#include "results.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "error.hpp"

namespace tessera {

namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

const Array &output(const Arrays &outputs, std::string_view name) {
    const auto found = outputs.find(name);
    if (found == outputs.end()) throw std::invalid_argument(text("there is no output ", name));
    return found->second;
}

size_t of_frame(const Array &output) {  // numbers
    return output.size() / static_cast<size_t>(std::max<int64_t>(1, output.rows()));
}

// NaN and infinite numbers of the first frame.
int64_t count_not_finite(const Array &output) {
    if (output.type() != TESSERA_FLOAT32 || all_finite(output.data<float>(), of_frame(output))) return 0;
    const auto *values = output.data<float>();
    return std::count_if(values, values + of_frame(output), [](float value) { return !std::isfinite(value); });
}

// In steps of 1 / `steps`.
float rounded(float probability, float steps) {
    constexpr float shift = 12582912;  // 1.5 * 2^23: a sum has no place for fractions
    const float step = std::min(std::max(probability, 0.0F), 1.0F) * steps + shift - shift;
    return step / steps;
}

// `instead` of the rules takes the place of a number that is not finite.
void decode_numbers(const Output &rules, const float *from, size_t n, float *into) {
    const auto steps = static_cast<float>(rules.steps);
    for (size_t i = 0; i < n; ++i) {
        const float value = std::isfinite(from[i]) ? from[i] : rules.instead;
        into[i] = rules.steps ? rounded(value, steps) : value;
    }
}

}  // namespace

Detector::Detector(const Output &rules) : task_(rules.task + "/"), velocity_(rules.velocity) {
    if (!rules.suppression.is_null()) nms_.emplace(rules.suppression);
    for (const char *name : {"boxes", "scores", "labels", "attributes", "centers", "sizes", "rotations", "velocities"})
        names_.push_back(task_ + name);
}

int64_t Detector::decode(const Arrays &outputs, Arrays &results) {
    const Array &given = output(outputs, names_[0]), &scores = output(outputs, names_[1]),
                &labels = output(outputs, names_[2]), &attributes = output(outputs, names_[3]);
    const size_t n = of_frame(scores), group = scores.shape().back(), width = given.shape().back();
    if (width < 10 || n % group != 0 || of_frame(given) != n * width || of_frame(labels) != n ||
        of_frame(attributes) != n) {
        throw std::invalid_argument("the detections have other shapes than their scores");
    }
    int64_t left_out = 0;
    scores_.assign(scores.data<float>(), scores.data<float>() + n);
    for (size_t i = 0; i < n; ++i) {
        if (std::isfinite(scores_[i]) && all_finite(given.data<float>() + width * i, width)) continue;
        scores_[i] = -1;  // below every threshold
        ++left_out;
    }
    const Candidates all{given.data<float>(), scores_.data(), width, labels};
    kept_.clear();
    for (size_t first = 0; nms_ && first < n; first += group) {
        nms_->run(all, first, first + group, static_cast<int64_t>(first / group), kept_);
    }
    for (size_t i = 0; !nms_ && i < n; ++i) kept_.push_back(i);
    kept_.erase(std::remove_if(kept_.begin(), kept_.end(), [&](size_t i) { return scores_[i] < 0; }), kept_.end());
    order_.resize(kept_.size());
    std::iota(order_.begin(), order_.end(), size_t{0});
    // Best first, of equal ones the first: std::stable_sort allocates memory.
    std::sort(order_.begin(), order_.end(), [&](size_t a, size_t b) {
        const float one = scores_[kept_[a]], other = scores_[kept_[b]];
        return one != other ? one > other : a < b;
    });
    if (nms_ && order_.size() > nms_->total()) order_.resize(nms_->total());
    write(all, attributes, results);
    return left_out;
}

void Detector::write(const Candidates &all, const Array &attributes, Arrays &results) const {
    const int64_t n = static_cast<int64_t>(order_.size());
    double *scores = fill_in<double>(results, names_[1], {n}), *centers = fill_in<double>(results, names_[4], {n, 3}),
           *sizes = fill_in<double>(results, names_[5], {n, 3}),
           *rotations = fill_in<double>(results, names_[6], {n, 3, 3}),
           *velocities = fill_in<double>(results, names_[7], {n, 3});
    int64_t *labels = fill_in<int64_t>(results, names_[2], {n}), *names = fill_in<int64_t>(results, names_[3], {n});
    for (const size_t place : order_) {
        const size_t i = kept_[place];
        const float *b = all.boxes + all.width * i;
        const Footprint own = footprint(b[0], b[1], b[3], b[4], b[6], b[7]);
        const double rotation[] = {own.cosine, -own.sine, 0, own.sine, own.cosine, 0, 0, 0, 1};
        const float velocity[] = {velocity_ ? b[8] : kNan, velocity_ ? b[9] : kNan, 0};
        centers = std::copy_n(b, 3, centers), sizes = std::copy_n(b + 3, 3, sizes);
        rotations = std::copy_n(rotation, 9, rotations), velocities = std::copy_n(velocity, 3, velocities);
        *scores++ = all.scores[i], *labels++ = integer_at(all.labels, i), *names++ = integer_at(attributes, i);
    }
}

Decoder::Decoder(const Manifest &manifest) : rules_(manifest.results) {
    for (const Output &rules : rules_) {
        not_finite_[rules.tensor] = 0;
        if (rules.kind == TESSERA_BOXES && rules.name == "boxes") detectors_.emplace(rules.tensor, rules);
    }
}

void Decoder::decode(const Arrays &outputs, Arrays &results) {
    for (const Output &rules : rules_) {
        const auto detector = detectors_.find(rules.tensor);
        const Array &from = output(outputs, rules.tensor);
        int64_t &not_finite = not_finite_.find(rules.tensor)->second;
        if (detector != detectors_.end()) not_finite = detector->second.decode(outputs, results);
        else if (rules.kind != TESSERA_BOXES) not_finite = count_not_finite(from);
        if (!rules.result || rules.kind == TESSERA_BOXES) continue;
        if (rules.kind == TESSERA_VALUE) decode_value(rules, outputs, from, results);
        else if (from.type() == TESSERA_FLOAT32)
            decode_numbers(rules, from.data<float>(), of_frame(from), fill<float>(rules, from, results));
        else decode_labels(rules, outputs, from, results);
    }
    int64_t *counts = fill_in<int64_t>(results, "not_finite", {static_cast<int64_t>(not_finite_.size())});
    for (const auto &each : not_finite_) *counts++ = each.second;
}

template <typename T>
T *Decoder::fill(const Output &rules, const Array &from, Arrays &results) {
    shape_.assign(from.shape().begin() + 1, from.shape().end());
    if (rules.squeeze) shape_.erase(shape_.begin());
    return fill_in<T>(results, *rules.result, shape_);
}

void Decoder::decode_labels(const Output &rules, const Arrays &outputs, const Array &from, Arrays &results) {
    const size_t n = of_frame(from);
    const float *there = nullptr;
    if (!rules.nowhere.empty()) {
        const Array &place = output(outputs, rules.nowhere);
        if (of_frame(place) != n)
            throw std::invalid_argument(rules.tensor + " has another shape than " + rules.nowhere);
        there = place.data<float>();
    }
    visit(from, [&](const auto *labels) {
        using T = std::remove_const_t<std::remove_pointer_t<decltype(labels)>>;
        T *into = fill<T>(rules, from, results);
        for (size_t i = 0; i < n; ++i) into[i] = there && there[i] == 0 ? static_cast<T>(rules.none) : labels[i];
    });
}

void Decoder::decode_value(const Output &rules, const Arrays &outputs, const Array &from, Arrays &results) {
    const size_t n = of_frame(from);
    const Array *doubt = rules.doubt.empty() ? nullptr : &output(outputs, rules.doubt);
    const bool known = !count_not_finite(from) && (!doubt || !count_not_finite(*doubt));
    double *into = fill_in<double>(results, *rules.result, {known ? static_cast<int64_t>(n) : 0});
    if (!known) return;
    std::copy_n(from.data<float>(), n, into);
    size_t first = 0;
    for (size_t group = 0; doubt && group < std::min(of_frame(*doubt), rules.groups.size()); ++group) {
        const auto size = std::min<size_t>(rules.groups[group], n - first);
        if (doubt->data<float>()[group] > rules.limit) std::fill_n(into + first, size, 1.0 / size);
        first += size;
    }
}

bool all_finite(const Arrays &outputs) {
    return std::all_of(outputs.begin(), outputs.end(), [](const auto &named) {
        const Array &array = named.second;
        return array.type() != TESSERA_FLOAT32 || all_finite(array.data<float>(), array.size());
    });
}

}  // namespace tessera
