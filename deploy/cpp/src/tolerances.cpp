// The outputs of the tasks, and the bounds of their tolerances by precision (deploy/tolerances.py).
#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "bundle.hpp"
#include "error.hpp"
#include "python_text.hpp"

namespace tessera {

namespace {

struct Pair {
    double each, mean;
};

struct Bounds {
    const char *precision;
    Pair score, box, heading, velocity, cells;
    double lost, unsteady, labels;
};

constexpr Bounds kBounds[] = {
    {"fp32", {1e-3, 1e-3}, {1e-2, 2e-3}, {1e-2, 2e-3}, {1e-2, 2e-3}, {1e-3, 2e-3}, 0, 1e-3, 2e-3},
    {"fp16", {0.04, 0.02}, {0.1, 0.02}, {0.2, 0.02}, {0.1, 0.02}, {0.1, 0.02}, 0.02, 0.04, 0.02},
    {"int8", {0.25, 0.08}, {0.6, 0.15}, {0.6, 0.15}, {0.8, 0.2}, {0.6, 0.2}, 0.1, 0.5, 0.25},
};

std::vector<std::string> names_of(const Json &list) {
    std::vector<std::string> names;
    for (const Json &each : list) names.push_back(each.at("name"));
    return names;
}

std::vector<std::string> levels_of(const Json &occupancy) {
    const Json &edge = occupancy.at("height").is_null() ? occupancy.at("cell") : occupancy.at("height");
    const double low = occupancy.at("z").at(0), height = edge;
    std::vector<std::string> levels;
    const double count = std::nearbyint((occupancy.at("z").at(1).get<double>() - low) / height);
    if (!(count < 1000)) throw std::invalid_argument("tasks.occupancy: has too many levels");
    for (int i = 0; i < count; ++i) levels.push_back(format("%g m", low + i * height));
    return levels;
}

void add(Numbers &numbers, const std::string &name, Pair pair) {
    numbers.emplace_back(name + ".each", pair.each);
    numbers.emplace_back(name + ".mean", pair.mean);
}

Numbers bounds_of(const Bounds &bounds, const std::vector<Output> &outputs, bool remembers) {
    Numbers ranked, dense, labels;
    for (const Output &output : outputs) {
        const std::string task = output.name.substr(0, output.name.find('/'));
        if (output.kind == Output::kRanked && ranked.empty()) {
            add(ranked, task + ".score", bounds.score);
            add(ranked, task + ".center", bounds.box);
            add(ranked, task + ".size", bounds.box);
            add(ranked, task + ".heading", bounds.heading);
            add(ranked, task + ".velocity", bounds.velocity);
            ranked.emplace_back(task + ".lost", bounds.lost);
        }
        const Pair pair = output.kind == Output::kCells ? bounds.cells : Pair{bounds.unsteady, 0};
        for (const std::string &channel : output.channels) add(dense, output.name + "." + channel, pair);
        if (output.kind == Output::kLabels) labels.emplace_back(output.name, bounds.labels);
        if (output.kind == Output::kFreeLabels) labels.emplace_back(output.name, 1.0);
    }
    ranked.insert(ranked.end(), dense.begin(), dense.end());
    ranked.insert(ranked.end(), labels.begin(), labels.end());
    if (remembers) ranked.emplace_back("state", bounds.score.each);
    return ranked;
}

}  // namespace

std::vector<Output> outputs_of(const Json &manifest) {
    const Json &taxonomy = manifest.at("taxonomy");
    std::vector<Output> outputs;
    for (const auto &[task, config] : manifest.at("tasks").items()) {
        const auto add = [&outputs, start = task + "/"](Output::Kind kind, const char *name,
                                                        const std::vector<std::string> &channels = {}) {
            outputs.push_back({kind, start + name, channels});
        };
        if (task == "detection") {
            for (const char *name : {"boxes", "scores", "labels", "attributes"}) add(Output::kRanked, name);
        } else if (task == "map") {
            add(Output::kCells, "probabilities", names_of(taxonomy.at("map_layers")));
        } else if (task == "conditions") {
            std::vector<std::string> kinds, values;
            for (const auto &[kind, own] : taxonomy.at("conditions").items()) {
                kinds.push_back(kind);
                values.insert(values.end(), own.begin(), own.end());
            }
            add(Output::kUnsteady, "probabilities", values);
            add(Output::kUnsteady, "distance", kinds);
        } else if (task == "points") {
            add(Output::kLabels, "classes");
            add(Output::kCells, "confidence", {"confidence"});
        } else if (task == "occupancy") {
            add(Output::kLabels, "classes");
            for (const char *name : {"occupied", "others"}) add(Output::kCells, name, levels_of(config));
            add(Output::kFreeLabels, "free");
        } else {
            throw std::invalid_argument(text("tasks.", task, ": extra inputs are not permitted"));
        }
    }
    return outputs;
}

void require_bounded(const Numbers &found, const Json &manifest, const fs::path &file) {
    static const char *const remedy = "; export the bundle again";
    const std::string precision = manifest.at("precision");
    const auto *bounds = std::find_if(std::begin(kBounds), std::end(kBounds),
                                      [&](const Bounds &each) { return each.precision == precision; });
    if (bounds == std::end(kBounds)) throw refused(file.string(), ": has an unknown precision", remedy);
    const Numbers largest = bounds_of(*bounds, outputs_of(manifest), manifest.contains("state"));
    const std::map<std::string, double> by_name(largest.begin(), largest.end());
    std::map<std::string, int> sides;  // 1: has a bound; 2: has a tolerance
    for (const auto &each : largest) sides[each.first] |= 1;
    for (const auto &each : found) sides[each.first] |= 2;
    for (const auto &[name, side] : sides)
        if (side != 3)
            throw refused(file.string(), ": has ", side == 1 ? "no" : "an unknown", " tolerance ", name, remedy);
    for (size_t i = 0; i < found.size(); ++i)
        if (found[i].first != largest[i].first)
            throw refused(file.string(), ": has tolerances in another order than its outputs", remedy);
    for (const auto &[name, number] : found)
        if (!(number >= 0 && number <= by_name.at(name)))
            throw refused(file.string(), ": tolerance ", name, " is ", format("%g", number), ", in ", precision,
                          " at most ", format("%g", by_name.at(name)), remedy);
}

}  // namespace tessera
