// The golden frames in the files of a bundle, and the one that goes end to end (deploy/golden_file.py).
#include "golden.hpp"

#include <zlib.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "error.hpp"
#include "inputs.hpp"
#include "python_text.hpp"
#include "results.hpp"

namespace tessera {

namespace {

constexpr const char *kFile = "golden.safetensors", *kMeaning = "golden.json", *kRemedy = "; export the bundle again";
constexpr const char *kKept = "kept pillars";

bool is_one_of(const std::string &name, std::initializer_list<const char *> names) {
    return std::find(names.begin(), names.end(), name) != names.end();
}

const Array &read_tensor(const fs::path &file, const Arrays &tensors, const std::string &side,
                         const TensorInfo &described) {
    const std::string name = side + "." + described.name;
    const auto found = tensors.find(name);
    const bool there = found != tensors.end();
    if (there && found->second.shape() == described.shape && found->second.type() == described.type)
        return found->second;
    throw refused(file.string(), ": ", name, " ",
                  there ? text("is ", found->second.type_name(), " ", repr(found->second.shape())) : "is missing",
                  ", the manifest says ", kTypes[described.type].name, " ", repr(described.shape));
}

Arrays below(const Arrays &tensors, const std::string &start) {
    Arrays found;
    for (auto each = tensors.lower_bound(start); each != tensors.end(); ++each) {
        if (each->first.compare(0, start.size(), start) != 0) break;
        found.emplace(each->first.substr(start.size()), each->second);
    }
    return found;
}

// Pillars are stored without padding, which would be most of the file.
Arrays pad_inputs(const fs::path &file, const Arrays &tensors, const std::string &side, const Manifest &manifest) {
    Arrays inputs, padding = no_sensors(manifest);
    for (TensorInfo described : manifest.inputs) {
        if (described.name == "state") continue;
        const auto stored = tensors.find(side + "." + described.name);
        if (!is_one_of(described.name, {"pillar_points", "pillar_counts", "pillar_cells"}) || stored == tensors.end() ||
            std::min(described.shape.size(), stored->second.shape().size()) < 2) {
            inputs[described.name] = read_tensor(file, tensors, side, described);
            continue;
        }
        described.shape[1] = std::min(described.shape[1], stored->second.shape()[1]);
        const Array &read = read_tensor(file, tensors, side, described);
        Array &padded = inputs[described.name] = padding.at(described.name);
        if (padded.byte_count() < read.byte_count())
            throw refused(file.string(), ": ", described.name, " is larger than the manifest's preprocessing makes it");
        std::memcpy(padded.data<char>(), read.data<char>(), read.byte_count());
    }
    return inputs;
}

// Less than 10 %, or 10 out of 40 or more, of the clear detections would show nothing.
void require_enough(const std::vector<GoldenFrame> &frames, const Manifest &manifest, const std::string &file) {
    if (frames.empty()) throw refused(file, ": holds no golden frame", kRemedy);
    const Json &rules = manifest.golden;
    for (const auto &task : frames[0].compared) {
        int64_t clear = 0, compared = 0;
        for (const GoldenFrame &frame : frames) {
            const Array &scores = frame.outputs.at(task.first + "/scores"), &chosen = frame.compared.at(task.first);
            const std::vector<bool> found = clear_detections(scores, rules.at("clear_score").get<double>() / 2);
            clear += std::count(found.begin(), found.end(), true);
            compared += std::count(chosen.data<uint8_t>(), chosen.data<uint8_t>() + chosen.size(), uint8_t{1});
        }
        const int64_t count = rules.at("least_compared"),
                      part = static_cast<int64_t>(rules.at("least_share").get<double>() * static_cast<double>(clear));
        const int64_t least = std::max(clear >= 4 * count ? count : 0, part);
        if (compared < least)
            throw refused(file, ": compares ", compared, " of ", clear, " detections, ", least, " are needed", kRemedy);
    }
}

std::string inflate(const Array &packed, size_t size) {
    std::string content(size, '\0');
    uLongf length = size;
    const int code =
        uncompress(reinterpret_cast<Bytef *>(content.data()), &length, packed.data<Bytef>(), packed.size());
    if (code != Z_OK || length != size) throw refused("zlib cannot decompress ", size, " bytes");
    return content;
}

template <size_t n>
std::array<double, n> matrix(const Arrays &sensors, const std::string &name) {
    const Array &array = sensors.at(name);
    if (array.type() != TESSERA_FLOAT64 || array.size() != n) throw refused(name, " is no matrix");
    std::array<double, n> values;
    std::copy_n(array.data<double>(), n, values.begin());
    return values;
}

// A frame of stored sensor data, which it points into, and its pictures.
Frame read_frame(const Arrays &sensors, std::vector<std::string> &pictures) {
    Frame frame;
    frame.global_from_reference = matrix<16>(sensors, "global_from_reference");
    frame.global_from_ego = matrix<16>(sensors, "global_from_ego");
    if (const auto points = sensors.find("points"); points != sensors.end()) {
        frame.points = points->second.data<float>();
        frame.point_count = points->second.size() / 5;
    }
    if (const auto sweeps = sensors.find("sweep_of_point"); sweeps != sensors.end()) {
        if (sweeps->second.size() < frame.point_count) throw refused("sweep_of_point has fewer points");
        frame.sweep_of_point = sweeps->second.data<uint8_t>();
    }
    pictures.reserve(sensors.size());
    for (const auto &[key, packed] : sensors) {
        const std::vector<std::string> parts = split(key, '/');
        if (parts.size() != 3 || parts[2] != "rgb") continue;
        const std::string start = "cameras/" + parts[1] + "/";
        const Array &sides = sensors.at(start + "size");
        const auto *size = sides.data<int64_t>();
        if (sides.size() != 2 || std::min(size[0], size[1]) < 1 || std::max(size[0], size[1]) > INT16_MAX)
            throw refused(start, "size is none of a picture");
        pictures.push_back(inflate(packed, static_cast<size_t>(size[0] * size[1] * 3)));
        const std::string_view name = std::string_view(key).substr(8, parts[1].size());
        frame.cameras.push_back(
            {name, reinterpret_cast<const uint8_t *>(pictures.back().data()), static_cast<int>(size[0]),
             static_cast<int>(size[1]), matrix<9>(sensors, start + "intrinsics"),
             matrix<16>(sensors, start + "ego_from_camera"), matrix<16>(sensors, start + "global_from_ego")});
    }
    return frame;
}

// What the numbers stand for, and which modules run if some conditions are known.
Json meaning_of(const Manifest &manifest, const std::vector<GoldenFrame> &golden, const Json &known) {
    const Json &json = manifest.json, &taxonomy = json.at("taxonomy");
    const auto names = [&](const char *key) {
        Json found = Json::array();
        for (const Json &each : taxonomy.at(key)) found.push_back(each.at("name"));
        return found;
    };
    Json meaning = {{"known", known},
                    {"grid", json.at("grid")},
                    {"head_grid", json.at("head_grid")},
                    {"classes", names("classes")},
                    {"attributes", taxonomy.at("attributes")},
                    {"map_layers", names("map_layers")},
                    {"point_classes", names("point_classes")}};
    meaning["conditions"] = Json::array();
    for (const auto &[kind, values] : taxonomy.at("conditions").items())
        meaning["conditions"].push_back(Json::array({kind, values}));
    const std::vector<std::string> &values = manifest.condition_values;
    for (const std::string name : known) {
        const std::set<std::string> conditions = conditions_of(name);
        for (const std::string &each : conditions)
            if (std::find(values.begin(), values.end(), each) == values.end())
                throw refused(each, ": unknown condition; choose from ", join(values, ", "));
        for (const GoldenFrame &frame : golden) {
            Arrays inputs = frame.inputs;
            steer(manifest, Conditions(conditions.begin(), conditions.end()), inputs);
            Json &weights = meaning[frame.name + " with " + name] = Json::array();
            for (size_t i = 0; i < manifest.banked.size(); ++i)
                weights.push_back(Json::array({manifest.banked[i].name, inputs.at("route").data<float>()[i]}));
        }
    }
    return meaning;
}

bool is_same(const std::string &name, const Array &expected, const Array &actual, const Json &rules) {
    if (expected.shape() != actual.shape()) return false;
    const std::vector<double> a = numbers(expected), b = numbers(actual);
    if (name == "images") {
        const auto cameras = static_cast<size_t>(expected.shape()[1]);
        for (size_t camera = 0, size = a.size() / cameras; camera < cameras; ++camera) {
            double off = 0;
            for (size_t i = camera * size; i < (camera + 1) * size; ++i)
                off += std::abs(b[i] - a[i]) > rules.at("grey_levels");
            if (off / static_cast<double>(size) > rules.at("rounded")) return false;
        }
        return true;
    }
    const bool exact = expected.type() != TESSERA_FLOAT32 && expected.type() != TESSERA_FLOAT64;
    const double close = exact ? 0 : rules.at("close").get<double>();
    for (size_t i = 0; i < a.size(); ++i) {
        const bool same = a[i] == b[i] || (std::isnan(a[i]) && std::isnan(b[i]));
        if (!same && !(std::abs(b[i] - a[i]) <= close + close * std::abs(a[i]))) return false;
    }
    return true;
}

// (P) int32: the cells that are kept if there is room for half of the frame's pillars.
Array select_kept_pillars(const Arrays &inputs, const Frame &frame, Manifest few) {
    if (!few.preprocessing.pillars) return Array::of<int32_t>({0});
    const Array &counts = inputs.at("pillar_counts");
    const auto pillars = std::count_if(counts.data<int32_t>(), counts.data<int32_t>() + counts.size(),
                                       [](int32_t count) { return count > 0; });
    const auto half = std::max<int64_t>(1, pillars / 2);
    few.preprocessing.pillars->most = static_cast<int>(half);
    few.preprocessing.pictures.reset();
    Arrays found = no_sensors(few);
    Preprocessor(few).prepare(frame, found);
    Array kept = found.at("pillar_cells");
    kept.resize(Shape{half});
    return kept;
}

// The detections of a class in a row, at ever greater distances and with scores from 1 to 0, so that it depends on
// every number of a suppression which of them remain.
Arrays crowd(Arrays outputs, const Manifest &manifest) {
    const auto step = static_cast<float>(manifest.golden.at("crowd_step").get<double>());
    for (const auto &task : manifest.tolerances.at("ranked").items()) {
        Array &boxes = outputs.at(task.key() + "/boxes"), &scores = outputs.at(task.key() + "/scores");
        const std::vector<double> labels = numbers(outputs.at(task.key() + "/labels"));
        const auto list = static_cast<size_t>(scores.shape().back()), width = static_cast<size_t>(boxes.shape().back());
        if (labels.size() != scores.size() || boxes.size() != scores.size() * width || width < 3 ||
            outputs.at(task.key() + "/attributes").size() != scores.size())
            throw refused(task.key(), " has outputs of different lengths");
        std::map<double, std::pair<const float *, float>> first;  // of each class, and how many there were so far
        for (size_t i = 0; i < labels.size(); ++i) {
            const double rank = static_cast<double>(i % list),
                         slope = -1 / std::max(1.0, static_cast<double>(list - 1));
            scores.data<float>()[i] = i % list + 1 == list && list > 1 ? 0 : static_cast<float>(rank * slope + 1);
            float *box = boxes.data<float>() + i * width;
            auto &[start, place] = first.try_emplace(labels[i], box, 0.0f).first->second;
            std::copy_n(start, 3, box);
            box[0] += step * (place * place);
            ++place;
        }
    }
    return outputs;
}

// A packed result as levels or numbers that can be compared with a decoded one.
Array levels_of(const Array &probabilities, float levels, float unknown) {
    Array found(TESSERA_FLOAT32, probabilities.shape());
    for (size_t i = 0; i < found.size(); ++i) {
        const float p = probabilities.data<float>()[i];
        found.data<float>()[i] = std::isnan(p) ? unknown : std::nearbyint(std::clamp(p, 0.0f, 1.0f) * levels);
    }
    return found;
}

// Stored probabilities: steps of a map's (perception/tasks/map/memory.py), and what stands for NaN in occupancy.
constexpr float kMapLevels = 4096, kUnknown = 255;

// Levels of a map, from the differences along both axes that are stored; and of a decoded one.
Array unpack_map(const Array &packed) {
    if (packed.shape().size() != 4 || packed.shape()[0] != 2) throw refused("map levels are not packed in two bytes");
    const Shape shape(packed.shape().begin() + 1, packed.shape().end());
    Array levels(TESSERA_FLOAT32, shape);
    const size_t rows = static_cast<size_t>(shape.at(1)), columns = static_cast<size_t>(shape.at(2));
    std::vector<uint16_t> above(columns);
    uint16_t along = 0;
    for (size_t i = 0, size = levels.size(); i < size; ++i) {
        const size_t column = i % columns, row = i / columns % rows;
        if (row == 0 && column == 0) std::fill(above.begin(), above.end(), uint16_t{0});
        if (column == 0) along = 0;
        along = static_cast<uint16_t>(along + packed.data<uint8_t>()[i] + 256 * packed.data<uint8_t>()[size + i] - 128);
        above[column] = static_cast<uint16_t>(above[column] + along);
        levels.data<float>()[i] = above[column];
    }
    return levels;
}

Array map_levels(const Array &probabilities) {
    Array levels = levels_of(probabilities, kMapLevels, kMapLevels + 1);
    for (size_t i = 0; i < levels.size(); ++i) {
        float &level = levels.data<float>()[i];
        if (level == kMapLevels / 2 && probabilities.data<float>()[i] < 0.5f) level = kMapLevels + 2;
    }
    return levels;
}

Array inflated(const Array &packed, const Shape &shape) {
    Array levels = Array::of<uint8_t>(shape);
    const std::string content = inflate(packed, levels.byte_count());
    std::memcpy(levels.data<char>(), content.data(), content.size());
    return levels;
}

// TASK/NAME of the stored predictions that the decoded outputs do not give.
std::vector<std::string> differing_predictions(const GoldenFrame &golden, const Manifest &manifest) {
    Arrays results;
    Decoder(manifest).decode(crowd(golden.outputs, manifest), results);
    std::vector<std::string> off;
    const auto compare = [&](const std::string &name, const Array &expected, const Array &actual) {
        if (!is_same(name, expected, actual, manifest.golden)) off.push_back(name);
    };
    for (const std::string &task : manifest.tasks) {
        const auto stored = [&](const char *name) -> const Array & { return golden.prediction.at(task + "/" + name); };
        const auto found = [&](const char *name) -> const Array & { return results.at(task + "/" + name); };
        if (task == "detection") {
            for (const char *name : {"centers", "sizes", "rotations", "velocities", "labels", "attributes", "scores"})
                compare(task + "/" + name, stored(name), found(name));
        } else if (task == "map") {
            compare("map/levels", unpack_map(stored("levels")), map_levels(found("probabilities")));
        } else if (task == "points") {
            compare("points/values", stored("values"), found("classes"));
        } else if (task == "occupancy") {
            const Json &rules = manifest.postprocessing.at(task);
            compare("occupancy/classes", inflated(stored("classes"), found("classes").shape()), found("classes"));
            for (const char *name : {"occupied", "others"})
                compare(text("occupancy/", name), inflated(stored(name), found(name).shape()),
                        levels_of(found(name), rules.at("levels"), kUnknown));
            compare("occupancy/free", stored("free"), found("free"));
        } else {
            size_t start = 0;
            for (const auto &[kind, values] : manifest.postprocessing.at(task).at("kinds").items()) {
                Array own = Array::of<double>({static_cast<int64_t>(values.size())});
                if (found("probabilities").size() < start + own.size()) throw refused("no probabilities of ", kind);
                std::copy_n(found("probabilities").data<double>() + start, own.size(), own.data<double>());
                compare(task + "/" + kind, stored(kind.c_str()), own);
                start += own.size();
            }
        }
    }
    return off;
}

// Names of the inputs that the sensor data do not give.
std::vector<std::string> differing_inputs(const GoldenFrame &golden, const Manifest &manifest) {
    std::vector<std::string> pictures, off;
    const Frame frame = read_frame(golden.sensors, pictures);
    Arrays found = no_sensors(manifest);
    Preprocessor(manifest).prepare(frame, found);
    for (const TensorInfo &input : manifest.inputs) {
        if (is_one_of(input.name, {"route", "conditions", "state", "current_from_previous", "state_valid", "elapsed"}))
            continue;
        if (!is_same(input.name, golden.inputs.at(input.name), found.at(input.name), manifest.golden))
            off.push_back(input.name);
    }
    if (!is_same(kKept, golden.sensors.at(kKept), select_kept_pillars(golden.inputs, frame, manifest), manifest.golden))
        off.push_back(kKept);
    return off;
}

// Names of the inputs of the memory that the moments of the golden frames do not give.
std::vector<std::string> differing_motions(const std::vector<GoldenFrame> &golden, const Manifest &manifest) {
    std::vector<std::string> off;
    const Moment *before = nullptr;
    for (const GoldenFrame &frame : golden) {
        if (!manifest.state || !frame.moment) continue;
        Arrays found = frame.inputs;
        state_inputs(before, *frame.moment, *manifest.state, manifest.preprocessing.admission.state_rigid, found);
        for (const char *name : {"current_from_previous", "state_valid", "elapsed"})
            if (!is_same(name, frame.inputs.at(name), found.at(name), manifest.golden))
                off.push_back(text(name, " of ", frame.name));
        before = &*frame.moment;
    }
    return off;
}

}  // namespace

std::vector<GoldenFrame> read_golden(const Bundle &bundle, const std::string &graph) {
    const Manifest &manifest = bundle.manifest();
    const fs::path file = bundle.path() / kFile;
    const Arrays tensors = read_safetensors(bundle.read(kFile), file);
    std::set<std::string> names;
    for (const auto &each : tensors) names.insert(each.first.substr(0, each.first.find('.')));
    const std::string part = bundle.has(graph) && graph == "model.cpu.onnx" ? ".cpu" : ".model";
    std::vector<GoldenFrame> frames;
    for (const std::string &name : names) {
        GoldenFrame &frame = frames.emplace_back();
        frame.name = name;
        for (TensorInfo described : manifest.outputs) {
            const int64_t step = manifest.golden.at("state_step");
            if (manifest.state && described.name == manifest.state->output)
                for (size_t k = 2; k < 4; ++k) described.shape.at(k) = (described.shape.at(k) + step - 1) / step;
            frame.outputs[described.name] = read_tensor(file, tensors, name + part + ".outputs", described);
        }
        for (const auto &task : manifest.tolerances.at("ranked").items()) {
            const Shape &listed = frame.outputs.at(task.key() + "/scores").shape();
            frame.compared[task.key()] =
                read_tensor(file, tensors, name + part + ".compared", {task.key(), listed, TESSERA_BOOL});
        }
        frame.inputs = pad_inputs(file, tensors, name + ".inputs", manifest);
        frame.sensors = below(tensors, name + ".sensors.");
        frame.prediction = below(tensors, name + part + ".prediction.");
        if (!manifest.state) continue;
        Moment &moment = frame.moment.emplace();
        moment.scene = name.substr(0, name.find_last_not_of("-0123456789") + 1);
        moment.timestamp =
            *read_tensor(file, tensors, name + ".moment", {"timestamp", {1}, TESSERA_INT64}).data<int64_t>();
        const Array &pose =
            read_tensor(file, tensors, name + ".moment", {"global_from_reference", {4, 4}, TESSERA_FLOAT64});
        std::copy_n(pose.data<double>(), 16, moment.global_from_reference.begin());
    }
    require_enough(frames, manifest, file.string());
    return frames;
}

void require_end_to_end(const std::vector<GoldenFrame> &golden, const Bundle &bundle) {
    const Manifest &manifest = bundle.manifest();
    const std::string file = (bundle.path() / kFile).string();
    const auto whole =
        std::find_if(golden.begin(), golden.end(), [](const auto &each) { return !each.sensors.empty(); });
    if (whole == golden.end()) throw refused(file, ": no golden frame has sensor data", kRemedy);
    Json stored, found;
    std::vector<std::string> names, off;
    const auto member = [](const Json &from, const std::string &name) { return from.value(name, Json()); };
    try {
        stored = parse_json(bundle.read(kMeaning));
        found = meaning_of(manifest, golden, stored.at("known"));
        for (const Json *side : {&stored, &found})
            for (const auto &each : side->items()) {
                // As objects whose members have no order.
                const nlohmann::json then = member(stored, each.key()), now = member(found, each.key());
                if (then != now) names.push_back(each.key());
            }
        if (names.empty()) {
            for (const auto &part : {differing_inputs(*whole, manifest), differing_predictions(*whole, manifest),
                                     differing_motions(golden, manifest)})
                off.insert(off.end(), part.begin(), part.end());
        }
    } catch (const std::exception &error) {
        throw refused(file, ", ", kMeaning, ": cannot be used here (", error.what(), ")", kRemedy);
    }
    if (!names.empty())
        throw refused((bundle.path() / kMeaning).string(), ": ", names[0], ": ", repr(member(found, names[0])),
                      ", at the export ", repr(member(stored, names[0])), kRemedy, ", with this version");
    if (!off.empty())
        throw refused(file, ": ", whole->name, ": ", join(off, ", "), " not as at the export", kRemedy,
                      ", with this version");
}

void sample(const Array &state, int step, Array &into) {
    const Shape &shape = state.shape();
    const int64_t rows = (shape.at(2) + step - 1) / step, columns = (shape.at(3) + step - 1) / step;
    into.resize({shape[0], shape[1], rows, columns});
    float *to = into.data<float>();
    for (int64_t plane = 0; plane < shape[0] * shape[1]; ++plane)
        for (int64_t row = 0; row < rows; ++row)
            for (int64_t column = 0; column < columns; ++column)
                *to++ = state.data<float>()[(plane * shape[2] + row * step) * shape[3] + column * step];
}

}  // namespace tessera
