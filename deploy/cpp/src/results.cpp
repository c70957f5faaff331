#include "results.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "error.hpp"

namespace tessera {

namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

const Array &output(const Arrays &outputs, std::string_view name) {
    const auto found = outputs.find(name);
    if (found == outputs.end()) throw refused("the engine gives no output ", name, "; export the bundle again");
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

// Best first. By score and place, because std::stable_sort allocates memory.
void sort(Boxes &boxes) {
    std::sort(boxes.begin(), boxes.end(),
              [](const Box &a, const Box &b) { return a.score != b.score ? a.score > b.score : a.place < b.place; });
}

void write(const Boxes &boxes, Arrays &results) {
    const int64_t n = static_cast<int64_t>(boxes.size());
    double *centers = fill_in<double>(results, "detection/centers", {n, 3}),
           *sizes = fill_in<double>(results, "detection/sizes", {n, 3}),
           *rotations = fill_in<double>(results, "detection/rotations", {n, 3, 3}),
           *velocities = fill_in<double>(results, "detection/velocities", {n, 3}),
           *scores = fill_in<double>(results, "detection/scores", {n});
    int64_t *labels = fill_in<int64_t>(results, "detection/labels", {n}),
            *attributes = fill_in<int64_t>(results, "detection/attributes", {n});
    for (const Box &box : boxes) {
        centers = std::copy_n(box.center, 3, centers), sizes = std::copy_n(box.size, 3, sizes);
        rotations = std::copy_n(box.rotation, 9, rotations), velocities = std::copy_n(box.velocity, 3, velocities);
        *scores++ = box.score, *labels++ = box.label, *attributes++ = box.attribute;
    }
}

class Detections {
   public:
    explicit Detections(const Json &settings) : velocity_(settings.at("velocity").get<bool>()) {
        if (!settings.at("suppression").is_null()) nms_.emplace(settings.at("suppression"));
    }

    void decode(const Arrays &outputs, Arrays &results) {
        const Array &scores = output(outputs, "detection/scores"), &boxes = output(outputs, "detection/boxes"),
                    &labels = output(outputs, "detection/labels"),
                    &attributes = output(outputs, "detection/attributes");
        const size_t n = of_frame(scores), group = scores.shape().back(), width = boxes.shape().back();
        if (width < 10 || n % group != 0 || of_frame(boxes) != n * width || of_frame(labels) != n ||
            of_frame(attributes) != n) {
            throw refused("the engine's detections have other shapes than their scores; export the bundle again");
        }
        scores_.assign(scores.data<float>(), scores.data<float>() + n);
        for (size_t i = 0; i < n; ++i) {
            const bool usable = std::isfinite(scores_[i]) && all_finite(boxes.data<float>() + width * i, width);
            if (!usable) scores_[i] = -1;  // below every threshold
        }
        const Candidates all{boxes.data<float>(), scores_.data(), width, labels};
        kept_.clear();
        for (size_t first = 0; nms_ && first < n; first += group) {
            nms_->run(all, first, first + group, static_cast<int64_t>(first / group), kept_);
        }
        for (size_t i = 0; !nms_ && i < n; ++i) kept_.push_back(i);
        boxes_.clear();
        for (size_t i : kept_) {
            if (scores_[i] >= 0) boxes_.push_back(box(all, i, integer_at(attributes, i), boxes_.size()));
        }
        sort(boxes_);
        if (nms_ && boxes_.size() > nms_->total()) boxes_.resize(nms_->total());
        write(boxes_, results);
    }

   private:
    Box box(const Candidates &all, size_t index, int64_t attribute, size_t place) const {
        const float *b = all.boxes + all.width * index;
        const Footprint own = footprint(b[0], b[1], b[3], b[4], b[6], b[7]);
        const double unknown = std::numeric_limits<double>::quiet_NaN();
        return {{b[0], b[1], b[2]},
                {b[3], b[4], b[5]},
                {own.cosine, -own.sine, 0, own.sine, own.cosine, 0, 0, 0, 1},
                {velocity_ ? b[8] : unknown, velocity_ ? b[9] : unknown, 0},
                all.scores[index],
                integer_at(all.labels, index),
                attribute,
                place};
    }

    bool velocity_;
    std::optional<Suppressor> nms_;
    std::vector<float> scores_;
    std::vector<size_t> kept_;
    Boxes boxes_;
};

// A kind whose distance from the training data is above the limit has the same probability for each value.
class Conditions {
   public:
    explicit Conditions(const Json &settings) : limit_(settings.at("limit").get<double>()) {
        for (const auto &[kind, values] : settings.at("kinds").items()) values_.push_back(values.size());
    }

    void decode(const Arrays &outputs, Arrays &results) const {
        const Array &given = output(outputs, "conditions/probabilities");
        const auto distance = outputs.find("conditions/distance");
        const float *from = given.data<float>(), *away = nullptr;
        const size_t n = of_frame(given), kinds = distance == outputs.end() ? 0 : of_frame(distance->second);
        if (kinds > 0) away = distance->second.data<float>();
        const bool known = all_finite(from, n) && all_finite(away, kinds);
        double *into = fill_in<double>(results, "conditions/probabilities", {known ? static_cast<int64_t>(n) : 0});
        if (!known) return;
        std::copy_n(from, n, into);
        size_t first = 0;
        for (size_t kind = 0; kind < std::min(kinds, values_.size()) && first + values_[kind] <= n; ++kind) {
            if (away[kind] > limit_) std::fill_n(into + first, values_[kind], 1.0 / values_[kind]);
            first += values_[kind];
        }
    }

   private:
    double limit_;
    std::vector<size_t> values_;  // of each kind
};

}  // namespace

struct Decoder::Parts {
    std::optional<Detections> detections;
    std::optional<Conditions> conditions;
    bool map = false;
    std::optional<uint8_t> none;  // of points
    std::optional<float> levels;  // of voxels
    Shape shape;

    void decode_points(const Arrays &outputs, Arrays &results) const {
        const Array &confidence = output(outputs, "points/confidence"), &classes = output(outputs, "points/classes");
        const size_t n = std::min(of_frame(confidence), of_frame(classes));
        float *probabilities = fill_in<float>(results, "points/probabilities", {static_cast<int64_t>(n)});
        uint8_t *into = fill_in<uint8_t>(results, "points/classes", {static_cast<int64_t>(n)});
        std::copy_n(confidence.data<float>(), n, probabilities);
        for (size_t i = 0; i < n; ++i) into[i] = probabilities[i] == 0 ? *none : classes.data<uint8_t>()[i];
    }

    void decode_voxels(const Arrays &outputs, Arrays &results) {
        change_each<uint8_t>(outputs, results, "occupancy/classes", shape, [](uint8_t name) { return name; });
        change_each<float>(outputs, results, "occupancy/free", shape, [](float d) { return std::isfinite(d) ? d : 0; });
        const auto rounded = [steps = *levels](float p) {
            constexpr float shift = 12582912;  // 1.5 * 2^23: a sum has no place for fractions
            const float level = std::min(std::max(p, 0.0F), 1.0F) * steps + shift - shift;
            return std::isfinite(p) ? level / steps : kNan;
        };
        for (const char *name : {"occupancy/occupied", "occupancy/others"}) {
            change_each<float>(outputs, results, name, shape, rounded);
        }
    }
};

Decoder::Decoder(const Manifest &manifest) : parts_(std::make_unique<Parts>()) {
    for (const std::string &task : manifest.tasks) {
        const Json &settings = manifest.postprocessing.at(task);
        if (task == "detection") parts_->detections.emplace(settings);
        else if (task == "conditions") parts_->conditions.emplace(settings);
        else if (task == "map") parts_->map = true;
        else if (task == "points") parts_->none = settings.at("none").get<uint8_t>();
        else parts_->levels = settings.at("levels").get<float>();  // occupancy; there are no others
    }
}

Decoder::~Decoder() = default;

void Decoder::decode(const Arrays &outputs, Arrays &results) {
    if (parts_->detections) parts_->detections->decode(outputs, results);
    if (parts_->conditions) parts_->conditions->decode(outputs, results);
    if (parts_->none) parts_->decode_points(outputs, results);
    if (parts_->levels) parts_->decode_voxels(outputs, results);
    if (parts_->map) {
        change_each<float>(outputs, results, "map/probabilities", parts_->shape,
                           [](float p) { return std::isfinite(p) ? p : kNan; });
    }
}

ViewJoiner::ViewJoiner(const Manifest &manifest) {
    const Json &tasks = manifest.postprocessing;
    if (tasks.contains("detection")) one_object_ = tasks["detection"].at("one_object").get<double>();
}

void ViewJoiner::join(const std::vector<std::string> &views, const std::vector<Arrays> &results, Arrays &joined) {
    boxes_.clear(), outlines_.clear();
    for (size_t view = 0; view < views.size(); ++view) {
        const double sign = views[view] == "rear" ? -1 : 1, signs[3] = {sign, sign, 1};  // of x, y, z
        const auto part = [&](const char *name) { return output(results[view], name).data<double>(); };
        const double *center = part("detection/centers"), *size = part("detection/sizes"),
                     *rotation = part("detection/rotations"), *velocity = part("detection/velocities"),
                     *score = part("detection/scores");
        for (size_t i = 0, n = output(results[view], "detection/scores").size(); i < n; ++i) {
            Box box{{}, {}, {}, {}, score[i], 0, 0, boxes_.size()};
            box.label = integer_at(output(results[view], "detection/labels"), i);
            box.attribute = integer_at(output(results[view], "detection/attributes"), i);
            std::copy_n(size + 3 * i, 3, box.size);
            // Sums of products in Python: no zero of theirs is negative, and a velocity is known or not as a whole.
            const double unknown = velocity[3 * i] + velocity[3 * i + 1];
            for (int axis : {0, 1, 2}) {
                box.center[axis] = signs[axis] * center[3 * i + axis] + 0.0;
                box.velocity[axis] = std::isnan(unknown) ? unknown : signs[axis] * velocity[3 * i + axis] + 0.0;
            }
            for (int k = 0; k < 9; ++k) box.rotation[k] = signs[k / 3] * rotation[9 * i + k] + 0.0;
            boxes_.push_back(box);
        }
    }
    sort(boxes_);
    for (const Box &box : boxes_) {  // the heading is made a unit vector twice, as in Python
        const Footprint unit = footprint(0, 0, 0, 0, box.rotation[3], box.rotation[0]);
        outlines_.push_back(footprint(box.center[0], box.center[1], box.size[0], box.size[1], unit.sine, unit.cosine));
    }
    const auto same = [this](size_t i, size_t k) {
        return boxes_[i].label == boxes_[k].label && overlap(outlines_[i], outlines_[k], one_object_);
    };
    gone_.assign(boxes_.size(), 0);
    if (views.size() > 1) greedy(boxes_.size(), boxes_.size(), same, gone_);
    size_t kept = 0;
    for (size_t i = 0; i < boxes_.size(); ++i) {
        if (!gone_[i]) boxes_[kept++] = boxes_[i];
    }
    boxes_.resize(kept);
    write(boxes_, joined);
}

bool all_finite(const Arrays &outputs) {
    return std::all_of(outputs.begin(), outputs.end(), [](const auto &named) {
        const Array &array = named.second;
        return array.type() != TESSERA_FLOAT32 || all_finite(array.data<float>(), array.size());
    });
}

}  // namespace tessera
