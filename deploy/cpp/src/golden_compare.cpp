// Compares the outputs of an engine with those of a golden frame (deploy/golden.py; docs/bundle_format.md).
#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>

#include "error.hpp"
#include "golden.hpp"
#include "results.hpp"

namespace tessera {

std::vector<double> numbers(const Array &array) {
    std::vector<double> found(array.size());
    visit(array, [&](const auto *values) { std::copy(values, values + found.size(), found.begin()); });
    return found;
}

namespace {

using Values = std::vector<double>;

struct Detections {
    Detections(const Arrays &outputs, const std::string &task)
        : width(static_cast<size_t>(outputs.at(task + "/boxes").shape().back())),
          boxes(numbers(outputs.at(task + "/boxes"))),
          scores(numbers(outputs.at(task + "/scores"))),
          labels(numbers(outputs.at(task + "/labels"))),
          attributes(numbers(outputs.at(task + "/attributes"))) {}
    const double *box(size_t i) const { return boxes.data() + i * width; }
    double heading(size_t i) const { return std::hypot(box(i)[6], box(i)[7]); }

    size_t width;
    Values boxes, scores, labels, attributes;
};

double lowest(const Values &scores) {
    double least = 1;
    for (const double score : scores) least = score > 0 ? std::min(least, score) : least;
    return least;
}

double median(Values values) {
    if (values.empty()) return 0;
    std::sort(values.begin(), values.end());
    return 0.5 * (values[(values.size() - 1) / 2] + values[values.size() / 2]);
}

// Sorted scores are compared one by one, because they depend continuously on the network's maps; zeros count as the
// lowest score, so that they do at the threshold, too. `lost` of them may differ more: rounding can change which
// anchors are candidates, by their greatest score.
std::string compare_scores(const Detections &mine, const Detections &other, const Json &allowed) {
    const double least = static_cast<float>(std::min(lowest(mine.scores), lowest(other.scores)));
    const size_t n = mine.scores.size();
    double sum = 0, total = 0;
    Values off;
    for (size_t i = 0; i < n; ++i) {
        const double a = mine.scores[i] > 0 ? mine.scores[i] : least, b = other.scores[i] > 0 ? other.scores[i] : least;
        off.push_back(std::abs(b - a));
        sum += b - a, total += mine.scores[i];
    }
    const double size = std::max<double>(1, n), mean = std::abs(sum / size) / std::max(total / size, 1e-9);
    const auto there = n - std::count(mine.scores.begin(), mine.scores.end(), 0.0);
    const size_t kept = n - static_cast<size_t>(allowed.at("lost").get<double>() * static_cast<double>(there));
    std::sort(off.begin(), off.end());
    const double each = kept ? off[kept - 1] : 0;
    if (each > allowed.at("score").at("each")) return text("scores is off by ", each);
    if (mean > allowed.at("score").at("mean")) return text("scores is off by ", 100 * mean, "% in the mean");
    return "";
}

// Signed differences of two boxes: three numbers of the center, three of the size, two of the heading (along the
// expected one and across) and two of the velocity.
using Offset = std::array<double, 10>;
constexpr struct {
    const char *name;
    size_t first, end;
} kQuantities[] = {{"center", 0, 3}, {"size", 3, 6}, {"heading", 6, 8}, {"velocity", 8, 10}};

Offset offset(const double *a, const double *b, double ahead, double other_ahead) {
    Offset off;
    for (size_t k = 0; k < off.size(); ++k) off[k] = b[k] - a[k];
    for (size_t k = 3; k < 6; ++k) off[k] /= std::max(std::abs(a[k]), 0.1);
    const double length = std::hypot(a[6], a[7]), sine = length > 0 ? a[6] / length : 0;
    const double cosine = length > 0 ? a[7] / length : 1;
    const double turned[] = {b[6] / other_ahead - a[6] / ahead, b[7] / other_ahead - a[7] / ahead};
    off[6] = turned[0] * sine + turned[1] * cosine;
    off[7] = turned[0] * cosine - turned[1] * sine;
    return off;
}

double length(const Offset &off, size_t quantity) {
    double sum = 0;
    for (size_t k = kQuantities[quantity].first; k < kQuantities[quantity].end; ++k) sum += off[k] * off[k];
    return std::sqrt(sum);
}

// Finds detections by their place.
class Places {
   public:
    explicit Places(const Detections &of) : of_(of), order_(of.scores.size()) {
        std::iota(order_.begin(), order_.end(), size_t{0});
        std::sort(order_.begin(), order_.end(), [&](size_t i, size_t j) { return of.box(i)[0] < of.box(j)[0]; });
    }

    // Whether `is_it` is true of any whose x and y are at most `reach` from the box's.
    template <typename Predicate>
    bool any(const double *box, double reach, const Predicate &is_it) const {
        auto next = std::lower_bound(order_.begin(), order_.end(), box[0] - reach,
                                     [&](size_t j, double x) { return of_.box(j)[0] < x; });
        for (; next != order_.end() && of_.box(*next)[0] <= box[0] + reach; ++next)
            if (std::abs(of_.box(*next)[1] - box[1]) <= reach && is_it(*next)) return true;
        return false;
    }

   private:
    const Detections &of_;
    std::vector<size_t> order_;
};

// The detections of a golden frame beside those of an engine. What is around one is looked at where it has no match.
class Matcher {
   public:
    Matcher(const Detections &mine, const Detections &other, const Json &allowed)
        : mine_(mine), other_(other), my_places_(mine), places_(other), expected_(other.scores.size(), -1) {
        Values headings;
        for (size_t i = 0; i < mine.scores.size(); ++i) headings.push_back(mine.heading(i));
        usual_ = std::max(median(headings), 1e-9);  // a shorter heading is uncertain: rounding changes its yaw
        for (size_t q = 0; q < 4; ++q) most_[q] = allowed.at(kQuantities[q].name).at("each");
        apart_ = allowed.at("score").at("each");
    }

    // The offset to the nearest that is alike.
    std::optional<Offset> match(size_t i) const {
        std::optional<Offset> nearest;
        places_.any(mine_.box(i), most_[0], [&](size_t j) {
            if (!near(i, j) || mine_.labels[i] != other_.labels[j] || mine_.attributes[i] != other_.attributes[j])
                return false;
            const Offset off = offset_of(i, j);
            bool alike = true;
            for (size_t q = 1; q < 4; ++q) alike = alike && length(off, q) <= most_[q];
            if (alike && (!nearest || length(off, 0) < length(*nearest, 0))) nearest = off;
            return false;
        });
        return nearest;
    }

    // Whether one of another label is in its place, where none of that label is expected.
    bool is_relabelled(size_t i) {
        return places_.any(mine_.box(i), most_[0], [&](size_t j) {
            return near(i, j) && mine_.labels[i] != other_.labels[j] && !is_expected(j);
        });
    }

    // Whether none of its label is around.
    bool is_gone(size_t i, double around) const {
        return !places_.any(mine_.box(i), around,
                            [&](size_t j) { return mine_.labels[i] == other_.labels[j] && other_.scores[j] > 0; });
    }

   private:
    Offset offset_of(size_t i, size_t j) const {
        return offset(mine_.box(i), other_.box(j), std::max(mine_.heading(i), usual_),
                      std::max(other_.heading(j), usual_));
    }

    bool near(size_t i, size_t j) const {
        return std::abs(other_.scores[j] - mine_.scores[i]) <= apart_ && length(offset_of(i, j), 0) <= most_[0];
    }

    bool is_expected(size_t j) {
        if (expected_[j] < 0)
            expected_[j] = my_places_.any(other_.box(j), most_[0],
                                          [&](size_t i) { return mine_.labels[i] == other_.labels[j] && near(i, j); });
        return expected_[j] == 1;
    }

    const Detections &mine_, &other_;
    Places my_places_, places_;
    std::vector<signed char> expected_;  // whether one of its label is near, of those that were asked for; else -1
    std::array<double, 4> most_{};
    double usual_ = 0, apart_ = 0;
};

// The order of detections is not compared: each compared one must have a match with its label, attribute and box, at
// any rank.
void compare_detections(const GoldenFrame &frame, const Arrays &actual, const std::string &task,
                        const Manifest &manifest, std::vector<std::string> &problems) {
    const Json &allowed = manifest.tolerances.at("ranked").at(task);
    const Detections mine(frame.outputs, task), other(actual, task);
    if (const std::string problem = compare_scores(mine, other, allowed); !problem.empty()) problems.push_back(problem);
    Matcher matcher(mine, other, allowed);
    const double around = manifest.golden.at("around");
    const auto list = static_cast<size_t>(frame.outputs.at(task + "/scores").shape().back());
    const auto least = static_cast<float>(lowest(mine.scores));
    const auto twice = static_cast<float>(2 * allowed.at("score").at("each").get<double>());
    const auto *compared = frame.compared.at(task).data<uint8_t>();
    size_t count = 0, matched = 0, relabelled = 0, gone = 0;
    Offset mean{};
    for (size_t i = 0; i < mine.scores.size(); ++i) {
        if (!compared[i]) continue;
        ++count;
        if (const std::optional<Offset> off = matcher.match(i)) {
            ++matched;
            for (size_t k = 0; k < mean.size(); ++k) mean[k] += (*off)[k];
            continue;
        }
        // Where scores tie at the end of a list, engines are free to choose which detections are in it.
        const auto last = static_cast<float>(mine.scores[i - i % list + list - 1]);
        const bool clear = mine.scores[i] > (last > 0 ? last : least) + twice;
        relabelled += matcher.is_relabelled(i);
        gone += clear && matcher.is_gone(i, around);
    }
    const auto lost = static_cast<double>(count - matched);
    if (relabelled) problems.push_back(text(relabelled, " labels differ"));
    if (gone) problems.push_back(text(gone, " compared detections are gone"));
    if (lost > allowed.at("lost").get<double>() * static_cast<double>(count))
        problems.push_back(text(lost, " of ", count, " compared detections differ"));
    for (double &each : mean) each /= std::max<double>(1, matched);
    for (size_t q = 0; q < 4; ++q)
        if (length(mean, q) > allowed.at(kQuantities[q].name).at("mean"))
            problems.push_back(text(kQuantities[q].name, " is off by ", length(mean, q), " in the mean"));
}

// Compares each channel of an output (1, channels, ...). The mean difference is signed, so that rounding errors cancel,
// and relative to the channel's mean size plus a thousandth of the scale, so that it is small for a class that is
// nowhere.
void compare_dense(const std::string &name, const Array &expected, const Array &actual, const Json &allowed,
                   std::vector<std::string> &problems) {
    const Json &channels = allowed.at("dense").at(name);
    const double scale = allowed.value("scales", Json::object()).value(name, 1.0);
    if (expected.shape().size() < 2 || static_cast<size_t>(expected.shape()[1]) < channels.size())
        throw std::invalid_argument(name + " has fewer channels than tolerances");
    const Values a = numbers(expected), b = numbers(actual);
    const size_t cells = a.size() / static_cast<size_t>(expected.shape()[1]);
    size_t k = 0;
    for (const auto &[channel, most] : channels.items()) {
        double each = 0, sum = 0, size = 0;
        for (const size_t end = k + cells; k < end; ++k) {
            each = std::max(each, std::abs(b[k] - a[k]));
            sum += b[k] - a[k];
            size += std::abs(a[k]);
        }
        const auto count = static_cast<double>(cells);
        const double mean = expected.shape().size() > 2 ? std::abs(sum / count) / (size / count + 1e-3 * scale) : 0;
        if (each > most.at("each")) problems.push_back(text(name, " is off by ", each, " (", channel, ")"));
        else if (mean > most.at("mean"))
            problems.push_back(text(name, " is off by ", 100 * mean, "% of ", channel, " in the mean"));
    }
}

std::vector<std::string> differences(const GoldenFrame &frame, const Arrays &actual, const Manifest &manifest) {
    if (!all_finite(actual)) return {"an output is not finite"};
    std::vector<std::string> problems;
    const Json &allowed = manifest.tolerances;
    for (const auto &each : allowed.at("ranked").items())
        compare_detections(frame, actual, each.key(), manifest, problems);
    for (const auto &each : allowed.at("dense").items())
        compare_dense(each.key(), frame.outputs.at(each.key()), actual.at(each.key()), allowed, problems);
    for (const StatePair &pair : manifest.states) {
        const std::string &name = pair.output;
        const Values a = numbers(frame.outputs.at(name)), b = numbers(actual.at(name));
        double size = 0, off = 0;
        for (size_t i = 0; i < a.size(); ++i) size += a[i] * a[i], off += (b[i] - a[i]) * (b[i] - a[i]);
        const double count = std::max<double>(1, a.size()),
                     apart = std::sqrt(off / count) / std::max(std::sqrt(size / count), 1e-9);
        if (apart > allowed.at("state")) problems.push_back(text(name, " is off by ", 100 * apart, "%"));
    }
    if (!allowed.contains("labels")) return problems;
    for (const auto &[name, most] : allowed["labels"].items()) {
        const Values a = numbers(frame.outputs.at(name)), b = numbers(actual.at(name));
        double share = 0;
        for (size_t i = 0; i < a.size(); ++i) share += a[i] != b[i];
        share /= std::max<double>(1, a.size());
        if (share > most) problems.push_back(text(name, " differs in ", 100 * share, "% of its elements"));
    }
    return problems;
}

}  // namespace

void require_golden(const GoldenFrame &frame, const Arrays &outputs, const std::string &engine,
                    const Manifest &manifest) {
    const std::vector<std::string> problems = differences(frame, outputs, manifest);
    if (!problems.empty())
        throw Error(TESSERA_WRONG_ENGINE, text(engine, ", golden frame ", frame.name,
                                               ": does not compute the exported network: ", join(problems, "; ")));
}

}  // namespace tessera
