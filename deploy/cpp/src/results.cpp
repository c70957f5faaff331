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

// Writes a result of the same name and shape as an output, without the batch.
template <typename T, typename Change>
void change_each(const Arrays &outputs, Arrays &results, std::string_view name, Shape &shape, Change change) {
    const Array &from = output(outputs, name);
    shape.assign(from.shape().begin() + 1, from.shape().end());
    T *into = fill_in<T>(results, name, shape);
    const T *values = from.data<T>();
    for (size_t i = 0, n = of_frame(from); i < n; ++i) into[i] = change(values[i]);
}

// NaN and infinite numbers of the first frame.
int64_t count_not_finite(const Array &output) {
    if (output.type() != TESSERA_FLOAT32 || all_finite(output.data<float>(), of_frame(output))) return 0;
    const auto *values = output.data<float>();
    return std::count_if(values, values + of_frame(output), [](float value) { return !std::isfinite(value); });
}

}  // namespace

int64_t Decoder::decode_detections(const Arrays &outputs, Arrays &results) {
    const Array &scores = output(outputs, "detection/scores"), &given = output(outputs, "detection/boxes"),
                &labels = output(outputs, "detection/labels"), &attributes = output(outputs, "detection/attributes");
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
    write_detections(all, attributes, results);
    return left_out;
}

void Decoder::write_detections(const Candidates &all, const Array &attributes, Arrays &results) const {
    const int64_t n = static_cast<int64_t>(order_.size());
    double *centers = fill_in<double>(results, "detection/centers", {n, 3}),
           *sizes = fill_in<double>(results, "detection/sizes", {n, 3}),
           *rotations = fill_in<double>(results, "detection/rotations", {n, 3, 3}),
           *velocities = fill_in<double>(results, "detection/velocities", {n, 3}),
           *scores = fill_in<double>(results, "detection/scores", {n});
    int64_t *labels = fill_in<int64_t>(results, "detection/labels", {n}),
            *names = fill_in<int64_t>(results, "detection/attributes", {n});
    for (const size_t place : order_) {
        const size_t i = kept_[place];
        const float *b = all.boxes + all.width * i;
        const Footprint own = footprint(b[0], b[1], b[3], b[4], b[6], b[7]);
        const double rotation[] = {own.cosine, -own.sine, 0, own.sine, own.cosine, 0, 0, 0, 1};
        const float velocity[] = {*velocity_ ? b[8] : kNan, *velocity_ ? b[9] : kNan, 0};
        centers = std::copy_n(b, 3, centers), sizes = std::copy_n(b + 3, 3, sizes);
        rotations = std::copy_n(rotation, 9, rotations), velocities = std::copy_n(velocity, 3, velocities);
        *scores++ = all.scores[i], *labels++ = integer_at(all.labels, i), *names++ = integer_at(attributes, i);
    }
}

Decoder::Decoder(const Manifest &manifest) {
    for (const std::string &task : manifest.tasks) {
        const Json &settings = manifest.postprocessing.at(task);
        if (task == "detection") {
            velocity_ = settings.at("velocity").get<bool>();
            if (!settings.at("suppression").is_null()) nms_.emplace(settings.at("suppression"));
        } else if (task == "conditions") {
            limit_ = settings.at("limit").get<double>();
            for (const auto &[kind, values] : settings.at("kinds").items()) values_.push_back(values.size());
        } else if (task == "map") {
            map_ = true;
        } else if (task == "points") {
            none_ = settings.at("none").get<uint8_t>();
        } else if (task == "occupancy") {
            levels_ = settings.at("levels").get<float>();
        } else {
            throw std::invalid_argument("tasks: " + task + " is none that this version knows");
        }
    }
}

void Decoder::decode(const Arrays &outputs, Arrays &results) {
    const int64_t boxes_left_out = velocity_ ? decode_detections(outputs, results) : 0;
    if (limit_) decode_conditions(outputs, results);
    if (none_) decode_points(outputs, results);
    if (levels_) decode_voxels(outputs, results);
    if (map_) {
        change_each<float>(outputs, results, "map/probabilities", shape_,
                           [](float p) { return std::isfinite(p) ? p : kNan; });
    }
    const auto of_task = [](const std::string &name) { return name.find('/') != std::string::npos; };
    const auto count = std::count_if(outputs.begin(), outputs.end(), [&](auto &each) { return of_task(each.first); });
    int64_t *not_finite = fill_in<int64_t>(results, "not_finite", {count});
    for (const auto &[name, array] : outputs) {
        if (name == "detection/boxes") *not_finite++ = boxes_left_out;
        else if (name.compare(0, 10, "detection/") == 0) *not_finite++ = 0;
        else if (of_task(name)) *not_finite++ = count_not_finite(array);
    }
}

void Decoder::decode_conditions(const Arrays &outputs, Arrays &results) const {
    const Array &given = output(outputs, "conditions/probabilities"),
                &distance = output(outputs, "conditions/distance");
    const float *from = given.data<float>(), *away = distance.data<float>();
    const size_t n = of_frame(given), kinds = of_frame(distance);
    const bool known = all_finite(from, n) && all_finite(away, kinds);
    double *into = fill_in<double>(results, "conditions/probabilities", {known ? static_cast<int64_t>(n) : 0});
    if (!known) return;
    std::copy_n(from, n, into);
    size_t first = 0;
    for (size_t kind = 0; kind < std::min(kinds, values_.size()) && first + values_[kind] <= n; ++kind) {
        if (away[kind] > *limit_) std::fill_n(into + first, values_[kind], 1.0 / values_[kind]);
        first += values_[kind];
    }
}

void Decoder::decode_points(const Arrays &outputs, Arrays &results) const {
    const Array &confidence = output(outputs, "points/confidence"), &classes = output(outputs, "points/classes");
    const size_t n = std::min(of_frame(confidence), of_frame(classes));
    float *probabilities = fill_in<float>(results, "points/probabilities", {static_cast<int64_t>(n)});
    uint8_t *into = fill_in<uint8_t>(results, "points/classes", {static_cast<int64_t>(n)});
    std::copy_n(confidence.data<float>(), n, probabilities);
    for (size_t i = 0; i < n; ++i) into[i] = probabilities[i] == 0 ? *none_ : classes.data<uint8_t>()[i];
}

void Decoder::decode_voxels(const Arrays &outputs, Arrays &results) {
    change_each<uint8_t>(outputs, results, "occupancy/classes", shape_, [](uint8_t name) { return name; });
    change_each<float>(outputs, results, "occupancy/free", shape_, [](float d) { return std::isfinite(d) ? d : 0; });
    const auto rounded = [steps = *levels_](float p) {
        constexpr float shift = 12582912;  // 1.5 * 2^23: a sum has no place for fractions
        const float level = std::min(std::max(p, 0.0F), 1.0F) * steps + shift - shift;
        return std::isfinite(p) ? level / steps : kNan;
    };
    for (const char *name : {"occupancy/occupied", "occupancy/others"}) {
        change_each<float>(outputs, results, name, shape_, rounded);
    }
}

bool all_finite(const Arrays &outputs) {
    return std::all_of(outputs.begin(), outputs.end(), [](const auto &named) {
        const Array &array = named.second;
        return array.type() != TESSERA_FLOAT32 || all_finite(array.data<float>(), array.size());
    });
}

}  // namespace tessera
