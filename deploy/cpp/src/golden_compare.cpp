// Compares the outputs of an engine with those of a golden frame (deploy/golden.py).
#include <algorithm>
#include <cmath>
#include <set>

#include "error.hpp"
#include "golden.hpp"
#include "python_text.hpp"

namespace tessera {

std::vector<double> numbers(const Array &array) {
    std::vector<double> found(array.size());
    visit(array, [&](const auto *values) { std::copy(values, values + found.size(), found.begin()); });
    return found;
}

namespace {

double lowest(const std::vector<double> &scores) {
    double least = 1;
    for (const double score : scores) least = score > 0 ? std::min(least, score) : least;
    return least;
}

// Scores with `least` instead of zeros, so that sorted scores stay continuous at the threshold.
std::vector<double> without_zeros(std::vector<double> scores, double least) {
    for (double &score : scores) score = score > 0 ? score : static_cast<float>(least);
    return scores;
}

double norm(const std::vector<double> &values) {
    double sum = 0;
    for (const double value : values) sum += value * value;
    return std::sqrt(sum);
}

struct Detections {
    explicit Detections(const Arrays &outputs, const std::string &task)
        : boxes(numbers(outputs.at(task + "/boxes"))),
          scores(numbers(outputs.at(task + "/scores"))),
          labels(numbers(outputs.at(task + "/labels"))),
          attributes(numbers(outputs.at(task + "/attributes"))),
          width(boxes.size() / std::max<size_t>(1, scores.size())) {}
    const double *box(size_t i) const { return boxes.data() + i * width; }
    std::vector<double> boxes, scores, labels, attributes;
    size_t width;
};

constexpr const char *kQuantities[] = {"center", "size", "heading", "velocity"};  // of boxes

// Signed differences of two detections, by quantity. A heading that is shorter than `usual` is uncertain: rounding
// changes its yaw a lot, its vector not.
std::array<std::vector<double>, 4> offsets(const double *a, const double *b, double usual) {
    std::array<std::vector<double>, 4> off;
    for (int k = 0; k < 3; ++k) off[0].push_back(b[k] - a[k]);
    for (int k = 3; k < 6; ++k) off[1].push_back((b[k] - a[k]) / std::max(std::abs(a[k]), 0.1));
    for (int k = 6; k < 8; ++k)
        off[2].push_back(b[k] / std::max(norm({b[6], b[7]}), usual) - a[k] / std::max(norm({a[6], a[7]}), usual));
    for (int k = 8; k < 10; ++k) off[3].push_back(b[k] - a[k]);
    return off;
}

double median(std::vector<double> values) {
    if (values.empty()) return 0;
    std::sort(values.begin(), values.end());
    return 0.5 * (values[(values.size() - 1) / 2] + values[values.size() / 2]);
}

// Sorted scores are compared one by one, because they depend continuously on the network's maps. `lost` of them may
// differ more: rounding can change which anchors are candidates, by their greatest score.
std::string score_problem(const Detections &mine, const Detections &other, const Json &allowed) {
    const double least = std::min(lowest(mine.scores), lowest(other.scores));
    const std::vector<double> a = without_zeros(mine.scores, least), b = without_zeros(other.scores, least);
    double sum = 0, total = 0;
    std::vector<double> off;
    for (size_t i = 0; i < a.size(); ++i) {
        off.push_back(std::abs(b[i] - a[i]));
        sum += b[i] - a[i];
        total += mine.scores[i];
    }
    const auto size = static_cast<double>(std::max<size_t>(1, a.size()));
    const double mean = std::abs(sum / size) / std::max(total / size, 1e-9);
    const auto there = a.size() - static_cast<size_t>(std::count(mine.scores.begin(), mine.scores.end(), 0.0));
    std::sort(off.begin(), off.end());
    const size_t kept = off.size() - static_cast<size_t>(allowed.at("lost").get<double>() * static_cast<double>(there));
    const double each = kept ? off[kept - 1] : 0;
    if (each > allowed.at("score").at("each")) return "scores is off by " + format("%.2g", each);
    if (mean > allowed.at("score").at("mean"))
        return "scores is off by " + format("%.2f", 100 * mean) + "% in the mean";
    return "";
}

// The order of detections is not compared: each compared one must have a match with its label, attribute and box, at
// any rank.
void compare_detections(const GoldenFrame &frame, const Arrays &actual, const std::string &task,
                        const Manifest &manifest, std::vector<std::string> &problems) {
    const Json &allowed = manifest.tolerances.at("ranked").at(task);
    const Detections mine(frame.outputs, task), other(actual, task);
    const std::vector<double> compared = numbers(frame.compared.at(task));
    if (const std::string problem = score_problem(mine, other, allowed); !problem.empty()) problems.push_back(problem);
    const size_t n = mine.scores.size();
    std::vector<double> lengths;
    for (size_t i = 0; i < n; ++i) lengths.push_back(norm({mine.box(i)[6], mine.box(i)[7]}));
    const double usual = std::max(median(lengths), 1e-9), reach = allowed.at("center").at("each");
    const double around = manifest.golden.at("around"), apart = allowed.at("score").at("each");
    std::array<double, 4> most;
    for (size_t q = 0; q < 4; ++q) most[q] = allowed.at(kQuantities[q]).at("each");
    const auto near = [&](size_t i, size_t j, double within) {
        const double *a = mine.box(i), *b = other.box(j);
        return b[0] >= a[0] - within && b[0] <= a[0] + within && std::abs(a[1] - b[1]) <= within;
    };
    std::vector<bool> there(n), matched(n), of_its_label(n);
    std::vector<std::pair<size_t, size_t>> other_label;
    std::array<std::vector<std::vector<double>>, 4> found;  // differences of the compared ones to their matches
    for (size_t i = 0; i < n; ++i) {
        std::array<std::vector<double>, 4> nearest;
        for (size_t j = 0; j < n; ++j) {
            const bool same = mine.labels[i] == other.labels[j];
            if (same && other.scores[j] > 0 && !there[i]) there[i] = near(i, j, around);
            if (std::abs(other.scores[j] - mine.scores[i]) > apart || !near(i, j, reach)) continue;
            const std::array<std::vector<double>, 4> off = offsets(mine.box(i), other.box(j), usual);
            if (norm(off[0]) > most[0]) continue;
            if (same) of_its_label[j] = true;
            else other_label.emplace_back(i, j);
            bool alike = same && mine.attributes[i] == other.attributes[j];
            for (size_t q = 1; q < 4; ++q) alike = alike && norm(off[q]) <= most[q];
            if (alike && (!matched[i] || norm(off[0]) < norm(nearest[0]))) nearest = off;
            matched[i] = matched[i] || alike;
        }
        for (size_t q = 0; q < 4 && compared[i] && matched[i]; ++q) found[q].push_back(nearest[q]);
    }
    std::set<size_t> lost, gone, relabelled;
    const std::vector<bool> clear = clear_detections(frame.outputs.at(task + "/scores"), apart);
    size_t count = 0;
    for (size_t i = 0; i < n; ++i) {
        count += compared[i] != 0;
        if (!compared[i] || matched[i]) continue;
        lost.insert(i);
        if (clear[i] && !there[i]) gone.insert(i);
    }
    for (const auto &[i, j] : other_label)
        if (lost.count(i) && !of_its_label[j]) relabelled.insert(i);
    if (!relabelled.empty())
        problems.push_back(text(relabelled.size(), " labels differ, first rank ", *relabelled.begin()));
    if (!gone.empty())
        problems.push_back(text(gone.size(), " compared detections are gone, first rank ", *gone.begin()));
    if (static_cast<double>(lost.size()) > allowed.at("lost").get<double>() * static_cast<double>(count))
        problems.push_back(text(lost.size(), " of ", count, " compared detections differ, first rank ", *lost.begin()));
    for (size_t q = 0; q < 4 && !found[q].empty(); ++q) {
        std::vector<double> mean(found[q][0].size());
        for (const auto &off : found[q])
            for (size_t k = 0; k < mean.size(); ++k) mean[k] += off[k] / static_cast<double>(found[q].size());
        if (norm(mean) > allowed.at(kQuantities[q]).at("mean"))
            problems.push_back(text(kQuantities[q], " is off by ", format("%.2g", norm(mean)), " in the mean"));
    }
}

// Compares each channel of an output (B, channels, ...). The mean difference is signed, so that rounding errors cancel,
// and relative to the channel's mean size plus 0.001, so that it is small for a class that is nowhere.
void compare_dense(const std::string &name, const Array &expected, const Array &actual, const Json &channels,
                   std::vector<std::string> &problems) {
    if (expected.shape().size() < 2 || static_cast<size_t>(expected.shape()[1]) < channels.size())
        throw refused(name, ": has fewer channels than tolerances");
    const std::vector<double> a = numbers(expected), b = numbers(actual);
    const auto batch = static_cast<size_t>(expected.rows()), sides = static_cast<size_t>(expected.shape()[1]);
    const size_t cells = a.size() / std::max<size_t>(1, batch * sides);
    size_t i = 0;
    for (const auto &[channel, most] : channels.items()) {
        double each = 0, sum = 0, size = 0;
        for (size_t frame = 0; frame < batch; ++frame)
            for (size_t k = (frame * sides + i) * cells, end = k + cells; k < end; ++k) {
                each = std::max(each, std::abs(b[k] - a[k]));
                sum += b[k] - a[k];
                size += std::abs(a[k]);
            }
        const auto count = static_cast<double>(batch * cells);
        const double mean = expected.shape().size() > 2 ? std::abs(sum / count) / (size / count + 1e-3) : 0;
        if (each > most.at("each"))
            problems.push_back(text(name, " is off by ", format("%.2g", each), " (", channel, ")"));
        else if (mean > most.at("mean"))
            problems.push_back(text(name, " is off by ", format("%.2f", 100 * mean), "% of ", channel, " in the mean"));
        ++i;
    }
}

std::vector<std::string> describe_malformed(const GoldenFrame &frame, const Arrays &actual, const Manifest &manifest) {
    std::vector<std::string> problems;
    for (const TensorInfo &output : manifest.outputs) {
        const Shape &wanted = frame.outputs.at(output.name).shape();
        const auto found = actual.find(output.name);
        if (found == actual.end()) {
            problems.push_back(output.name + " is missing");
        } else if (found->second.shape() != wanted) {
            problems.push_back(
                text(output.name, " has shape ", repr(found->second.shape()), " instead of ", repr(wanted)));
        } else {
            const std::vector<double> values = numbers(found->second);
            if (!std::all_of(values.begin(), values.end(), [](double value) { return std::isfinite(value); }))
                problems.push_back(output.name + " is not finite");
        }
    }
    return problems;
}

std::vector<std::string> differences(const GoldenFrame &frame, const Arrays &actual, const Manifest &manifest) {
    std::vector<std::string> problems = describe_malformed(frame, actual, manifest);
    if (!problems.empty()) return problems;
    const Json &allowed = manifest.tolerances;
    for (const auto &each : allowed.at("ranked").items())
        compare_detections(frame, actual, each.key(), manifest, problems);
    for (const auto &[name, channels] : allowed.at("dense").items())
        compare_dense(name, frame.outputs.at(name), actual.at(name), channels, problems);
    if (allowed.contains("state")) {
        const std::vector<double> a = numbers(frame.outputs.at("next_state")), b = numbers(actual.at("next_state"));
        double size = 0, off = 0;
        for (size_t i = 0; i < a.size(); ++i) size += a[i] * a[i], off += (b[i] - a[i]) * (b[i] - a[i]);
        const auto count = static_cast<double>(std::max<size_t>(1, a.size()));
        const double apart = std::sqrt(off / count) / std::max(std::sqrt(size / count), 1e-9);
        if (apart > allowed["state"]) problems.push_back("next_state is off by " + format("%.2f", 100 * apart) + "%");
    }
    if (!allowed.contains("labels")) return problems;
    for (const auto &[name, most] : allowed["labels"].items()) {
        const std::vector<double> a = numbers(frame.outputs.at(name)), b = numbers(actual.at(name));
        double share = 0;
        for (size_t i = 0; i < a.size(); ++i) share += a[i] != b[i];
        share /= static_cast<double>(std::max<size_t>(1, a.size()));
        if (share > most)
            problems.push_back(text(name, " differs in ", format("%.2f", 100 * share), "% of its elements"));
    }
    return problems;
}

}  // namespace

std::vector<bool> clear_detections(const Array &scores, double score) {
    const std::vector<double> values = numbers(scores);
    const double least = lowest(values);
    const auto list = static_cast<size_t>(scores.shape().back());
    std::vector<bool> clear;
    for (size_t i = 0; i < values.size(); ++i) {
        const double last = values[i - i % list + list - 1];
        const auto bound = static_cast<float>(last > 0 ? last : least) + static_cast<float>(2 * score);
        clear.push_back(values[i] > bound);
    }
    return clear;
}

void require_golden(const GoldenFrame &frame, const Arrays &outputs, const std::string &engine,
                    const Manifest &manifest) {
    const std::vector<std::string> problems = differences(frame, outputs, manifest);
    if (!problems.empty())
        throw Error(TESSERA_WRONG_ENGINE, text(engine, ", golden frame ", frame.name,
                                               ": does not compute the exported network: ", join(problems, "; ")));
}

}  // namespace tessera
