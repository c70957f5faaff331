#include "results.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "error.hpp"

namespace tessera {

namespace {

constexpr double kOneObject = 0.2;  // least IoU of detections of one object in two views
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

const Array &output(const Arrays &outputs, std::string_view name) {
    const auto found = outputs.find(name);
    if (found == outputs.end()) throw refused("the engine gives no output ", name, "; export the bundle again");
    return found->second;
}

bool finite(const float *values, size_t n) {
    return std::all_of(values, values + n, [](float value) { return std::isfinite(value); });
}

size_t of_frame(const Array &output) { return output.size() / static_cast<size_t>(std::max<int64_t>(1, output.rows())); }

// Writes a result of the same name and shape as an output, without the batch.
template <typename T, typename Change>
void change_each(const Arrays &outputs, Arrays &results, std::string_view name, Shape &shape, Change change) {
    const Array &from = output(outputs, name);
    shape.assign(from.shape().begin() + 1, from.shape().end());
    T *into = fill_in<T>(results, name, shape);
    const T *values = from.data<T>();
    for (size_t i = 0, n = of_frame(from); i < n; ++i) into[i] = change(values[i]);
}

double turn(std::string_view view) { return view == "rear" ? -1 : 1; }  // of x and y

class Detections {
   public:
    explicit Detections(const Json &settings) : velocity_(settings.at("velocity").get<bool>()) {
        if (!settings.at("suppression").is_null()) nms_.emplace(settings.at("suppression"));
    }

    void decode(const Arrays &outputs, Arrays &results) {
        const Array &scores = output(outputs, "detection/scores"), &boxes = output(outputs, "detection/boxes");
        const size_t n = of_frame(scores), group = scores.shape().back(), width = boxes.shape().back();
        const Array &labels = output(outputs, "detection/labels");
        if (width < (velocity_ ? 10 : 8) || of_frame(boxes) != n * width || of_frame(labels) != n) {
            throw refused("the engine's detections have other shapes than their scores; export the bundle again");
        }
        scores_.assign(scores.data<float>(), scores.data<float>() + n);
        for (size_t i = 0; i < n; ++i) {
            const bool usable = std::isfinite(scores_[i]) && finite(boxes.data<float>() + width * i, width);
            if (!usable) scores_[i] = -1;  // below every threshold
        }
        const Candidates all{boxes.data<float>(), scores_.data(), width, labels};
        choose(all, n, group);
        write(all, output(outputs, "detection/attributes"), results);
    }

   private:
    struct Kept {
        float score;
        int place, index;
    };

    // The remaining detections, best first.
    void choose(const Candidates &all, size_t n, size_t group) {
        indices_.clear();
        if (nms_) {
            for (size_t first = 0; first < n; first += group) {
                nms_->run(all, first, first + group, static_cast<int64_t>(first / group), indices_);
            }
        } else {
            for (size_t i = 0; i < n; ++i) indices_.push_back(static_cast<int>(i));
        }
        kept_.clear();
        for (int index : indices_) {
            if (scores_[index] >= 0) kept_.push_back({scores_[index], static_cast<int>(kept_.size()), index});
        }
        // By score and place, because std::stable_sort allocates memory.
        std::sort(kept_.begin(), kept_.end(), [](const Kept &a, const Kept &b) {
            return a.score != b.score ? a.score > b.score : a.place < b.place;
        });
        if (nms_ && kept_.size() > nms_->total()) kept_.resize(nms_->total());
    }

    void write(const Candidates &all, const Array &attributes, Arrays &results) const {
        const int64_t n = static_cast<int64_t>(kept_.size());
        double *centers = fill_in<double>(results, "detection/centers", {n, 3}),
               *sizes = fill_in<double>(results, "detection/sizes", {n, 3}),
               *rotations = fill_in<double>(results, "detection/rotations", {n, 3, 3}),
               *velocities = fill_in<double>(results, "detection/velocities", {n, 3}),
               *scores = fill_in<double>(results, "detection/scores", {n});
        int64_t *labels = fill_in<int64_t>(results, "detection/labels", {n}),
                *classes = fill_in<int64_t>(results, "detection/attributes", {n});
        for (const Kept &each : kept_) {
            const float *box = all.boxes + all.width * each.index;
            const Footprint own = footprint(box[0], box[1], box[3], box[4], box[6], box[7]);
            const double rotation[9] = {own.cosine, -own.sine, 0, own.sine, own.cosine, 0, 0, 0, 1};
            centers = std::copy_n(box, 3, centers);
            sizes = std::copy_n(box + 3, 3, sizes);
            rotations = std::copy_n(rotation, 9, rotations);
            for (int axis : {0, 1}) {
                *velocities++ = velocity_ ? box[8 + axis] : std::numeric_limits<double>::quiet_NaN();
            }
            *velocities++ = 0;
            *scores++ = each.score;
            *labels++ = integer_at(all.labels, each.index);
            *classes++ = integer_at(attributes, each.index);
        }
    }

    bool velocity_;
    std::optional<Suppressor> nms_;
    std::vector<float> scores_;
    std::vector<int> indices_;
    std::vector<Kept> kept_;
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
        const bool known = finite(from, n) && finite(away, kinds);
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
        else if (task == "occupancy") parts_->levels = settings.at("levels").get<float>();
        else throw refused("manifest.json: this library does not know the task ", task, ": update it");
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

void ViewJoiner::join(const std::vector<std::string> &views, const std::vector<Arrays> &results, Arrays &joined) {
    rows_.clear();
    for (size_t view = 0; view < views.size(); ++view) {
        const Array &scores = output(results[view], "detection/scores"), &labels = output(results[view], "detection/labels");
        for (size_t row = 0; row < scores.size(); ++row) {
            rows_.push_back({scores.data<double>()[row], integer_at(labels, row), rows_.size(), view, row});
        }
    }
    std::sort(rows_.begin(), rows_.end(),
              [](const Row &a, const Row &b) { return a.score != b.score ? a.score > b.score : a.place < b.place; });
    if (views.size() > 1) suppress(views, results);
    const int64_t n = static_cast<int64_t>(rows_.size());
    double *centers = fill_in<double>(joined, "detection/centers", {n, 3}),
           *sizes = fill_in<double>(joined, "detection/sizes", {n, 3}),
           *rotations = fill_in<double>(joined, "detection/rotations", {n, 3, 3}),
           *velocities = fill_in<double>(joined, "detection/velocities", {n, 3}),
           *scores = fill_in<double>(joined, "detection/scores", {n});
    int64_t *labels = fill_in<int64_t>(joined, "detection/labels", {n}),
            *attributes = fill_in<int64_t>(joined, "detection/attributes", {n});
    for (const Row &own : rows_) {
        const auto part = [&](const char *name, size_t width) {
            return output(results[own.view], name).data<double>() + width * own.row;
        };
        const double sign = turn(views[own.view]);
        const double *velocity = part("detection/velocities", 3), *rotation = part("detection/rotations", 9);
        // Sums of products in Python: no zero of theirs is negative, and a velocity is known or not as a whole.
        for (int axis : {0, 1, 2}) {
            const double factor = axis < 2 ? sign : 1, unknown = velocity[0] + velocity[1];
            *centers++ = factor * part("detection/centers", 3)[axis] + 0.0;
            *velocities++ = std::isnan(unknown) ? unknown : factor * velocity[axis] + 0.0;
            for (int column : {0, 1, 2}) *rotations++ = factor * rotation[3 * axis + column] + 0.0;
        }
        sizes = std::copy_n(part("detection/sizes", 3), 3, sizes);
        *scores++ = own.score;
        *labels++ = own.label;
        *attributes++ = integer_at(output(results[own.view], "detection/attributes"), own.row);
    }
}

// Of the detections of one object that two views see, the best stays.
void ViewJoiner::suppress(const std::vector<std::string> &views, const std::vector<Arrays> &results) {
    gone_.assign(rows_.size(), 2);  // not looked at
    for (size_t first = 0; first < rows_.size(); ++first) {
        if (gone_[first] != 2) continue;
        nms_.boxes.clear(), own_.clear();
        for (size_t i = first; i < rows_.size(); ++i) {
            if (rows_[i].label != rows_[first].label) continue;
            const Arrays &from = results[rows_[i].view];
            const double sign = turn(views[rows_[i].view]);
            const double *center = output(from, "detection/centers").data<double>() + 3 * rows_[i].row,
                         *size = output(from, "detection/sizes").data<double>() + 3 * rows_[i].row,
                         *rotation = output(from, "detection/rotations").data<double>() + 9 * rows_[i].row;
            const Footprint unit = footprint(0, 0, 0, 0, sign * rotation[3], sign * rotation[0]);
            nms_.boxes.push_back(
                footprint(sign * center[0], sign * center[1], size[0], size[1], unit.sine, unit.cosine));
            own_.push_back(i);
        }
        nms_.run(kOneObject, own_.size(), gone_of_label_);
        for (size_t i = 0; i < own_.size(); ++i) gone_[own_[i]] = gone_of_label_[i];
    }
    size_t kept = 0;
    for (size_t i = 0; i < rows_.size(); ++i) {
        if (!gone_[i]) rows_[kept++] = rows_[i];
    }
    rows_.resize(kept);
}

bool all_finite(const Arrays &outputs) {
    return std::all_of(outputs.begin(), outputs.end(), [](const auto &named) {
        const Array &array = named.second;
        return array.type() != TESSERA_FLOAT32 || finite(array.data<float>(), array.size());
    });
}

}  // namespace tessera
