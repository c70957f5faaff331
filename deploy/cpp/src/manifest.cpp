// Reads manifest.json into `Manifest` (deploy/manifest.py).
#include <algorithm>
#include <cmath>

#include "bundle.hpp"
#include "error.hpp"

namespace tessera {

namespace {

// A reader of schema N reads N - 1, too (docs/bundle_format.md).
constexpr int kOldest = 13, kSchema = 14, kLargest = 1'000'000;
const std::set<std::string> kKeys = {
    "precision",      "blocks",         "opset",    "tolerances", "inputs",     "outputs",
    "routes",         "folded",         "inline",   "banked",     "parameters", "flops",
    "operators",      "state",          "name",     "release",    "expires",    "structure_sha256",
    "preprocessing",  "schema_version", "taxonomy", "rig",        "grid",       "head_grid",
    "postprocessing", "steering",       "lidar",    "camera",     "sensors",    "tasks",
    "modules",        "apart",          "golden",   "origin",     "results",
};
// Inputs that this library makes.
const std::set<std::string> kMade = {
    "pillar_points", "pillar_counts",        "pillar_cells", "points",      "point_cells",           "images",
    "conditions",    "image_from_reference", "route",        "state_valid", "current_from_previous", "elapsed",
};

// Whether a value has this type; nlohmann would make an int of 0.5, and of true.
template <typename T>
bool is(const Json &json) {
    if constexpr (std::is_same_v<T, std::string>) return json.is_string();
    else if constexpr (std::is_same_v<T, bool>) return json.is_boolean();
    else if constexpr (std::is_same_v<T, double>) return json.is_number();
    else if constexpr (std::is_same_v<T, int>) return json.is_number_integer() && json >= 0 && json <= kLargest;
    else if constexpr (std::is_same_v<T, int64_t>)  // a larger one would wrap
        return json.is_number_integer() && (!json.is_number_unsigned() || json.get<uint64_t>() <= INT64_MAX);
    else if constexpr (std::is_array_v<T>) return is<std::vector<std::remove_extent_t<T>>>(json);
    else return json.is_array() && std::all_of(json.begin(), json.end(), is<typename T::value_type>);
}

// Values by their places, such as /inputs/0/shape.
class Reader {
   public:
    Reader(const Json &json, const std::string &file) : json_(json), file_(file) {}

    const Json &at(const std::string &place) const {
        const Json::json_pointer pointer(place);
        require(json_.contains(pointer), place, "is missing");
        return json_.at(pointer);
    }
    // Reads the value of each key, at PLACE/KEY, into what comes behind the key.
    template <typename T, typename... More>
    void operator()(const std::string &place, const char *key, T &into, More &&...more) const {
        const Json &value = at(place + "/" + key);
        require(is<T>(value), place + "/" + key, "has another type");
        value.get_to(into);
        if constexpr (sizeof...(more) > 0) (*this)(place, more...);
    }
    bool has(const std::string &place) const {
        return json_.contains(Json::json_pointer(place)) && !at(place).is_null();
    }
    // The places of a list's items.
    std::vector<std::string> items(const std::string &place) const {
        require(at(place).is_array(), place, "is no list");
        std::vector<std::string> places;
        for (size_t i = 0; i < at(place).size(); ++i) places.push_back(text(place, "/", i));
        return places;
    }
    void require(bool right, const std::string &place, const char *wrong) const {
        if (!right) throw refused(file_, ": ", place, ": ", wrong, "; export the bundle again");
    }

   private:
    const Json &json_;
    const std::string &file_;
};

void read_preprocessing(const Reader &read, const Manifest &manifest, Preprocessing &into) {
    const std::string place = "/preprocessing", pillars = place + "/pillars", pictures = place + "/pictures";
    read(place, "points", into.points, "reference", into.reference);
    if (read.has(place + "/sweeps")) read(place + "/sweeps", "most", into.sweeps, "oldest", into.oldest);
    if (read.has(pillars)) {
        Pillars &p = into.pillars.emplace();
        std::string overflow;
        read(pillars, "rows", p.rows, "columns", p.columns, "cell", p.cell, "x", p.x, "y", p.y, "z", p.z, "most",
             p.most, "points", p.points, "overflow", overflow);
        p.fullest = overflow == "fullest";
        read.require(p.fullest || overflow == "first", pillars + "/overflow", "is neither fullest nor first");
    }
    if (read.has(pictures)) {
        Pictures &p = into.pictures.emplace();
        read(pictures, "cameras", p.cameras, "height", p.height, "width", p.width, "steps", p.steps);
    }
    if (read.has(place + "/scanners"))
        for (const auto &[name, absent] : read.at(place + "/scanners").items()) {
            const auto named = [&name = name](const TensorInfo &each) { return each.name == name; };
            const bool given = std::any_of(manifest.inputs.begin(), manifest.inputs.end(), named) && !kMade.count(name);
            read.require(given, place + "/scanners/" + name, "is no input that a host makes");
            read.require(is<int64_t>(absent), place + "/scanners/" + name, "is no integer");
            into.scanners[name] = absent;
        }
    Admission &a = into.admission;
    read(place + "/admission", "rigid", a.rigid, "upright", a.upright, "far", a.far, "narrowest", a.narrowest,
         "largest", a.largest, "state_rigid", a.state_rigid);
}

void read_tensors(const Reader &read, const std::string &place, std::vector<TensorInfo> &into) {
    for (const std::string &each : read.items(place)) {
        TensorInfo &tensor = into.emplace_back();
        read(each, "name", tensor.name, "shape", tensor.shape);
        const auto *type = std::find_if(std::begin(kTypes), std::end(kTypes),
                                        [&](const auto &known) { return read.at(each + "/dtype") == known.name; });
        read.require(type != std::end(kTypes), each + "/dtype", "is no type that this version knows");
        tensor.type = type->type;
    }
}

// Takes the states out of the network's inputs and outputs, which must fit to each other.
void read_state(const Reader &read, Manifest &manifest) {
    const auto take = [](std::vector<TensorInfo> &tensors, const std::string &name, const Shape &shape) {
        const auto found = std::find_if(tensors.begin(), tensors.end(), [&](const TensorInfo &each) {
            return each.name == name && each.shape == shape && each.type == TESSERA_FLOAT32;
        });
        if (found == tensors.end()) return false;
        tensors.erase(found);
        return true;
    };
    const auto is_motion = [](const TensorInfo &each) {
        return each.name == "current_from_previous" || each.name == "state_valid" || each.name == "elapsed";
    };
    bool fits = true;
    if (read.has("/state")) {
        StateLimits &state = manifest.state.emplace();
        read("/state", "seconds", state.seconds, "speed", state.speed, "spacing", state.spacing);
        for (const std::string &place : read.items("/state/pairs")) {
            StatePair &pair = manifest.states.emplace_back();
            std::string dtype, warp = "bev";
            read(place, "input", pair.input, "output", pair.output, "shape", pair.shape, "dtype", dtype);
            if (read.has(place + "/warp")) read(place, "warp", warp);
            fits = fits && pair.output == "next_" + pair.input && dtype == "float32" &&
                   take(manifest.inputs, pair.input, pair.shape) && take(manifest.outputs, pair.output, pair.shape) &&
                   (warp == "none" || (warp == "bev" && pair.shape.size() == 4));
        }
    }
    const auto motion = std::count_if(manifest.inputs.begin(), manifest.inputs.end(), is_motion);
    fits = fits && motion == (manifest.state ? 3 : 0) && manifest.states.empty() != manifest.state.has_value();
    read.require(fits, "/state", "is not that of the network's inputs and outputs");
}

void read_conditions(const Reader &read, Manifest &into) {
    for (const auto &[kind, values] : read.at("/taxonomy/conditions").items()) {
        for (const Json &value : values) {
            into.condition_kinds.push_back(kind);
            into.condition_values.push_back(value);
        }
    }
}

Output read_output(const Reader &read, const std::string &task, const std::string &place) {
    constexpr const char *kKinds[] = {"boxes", "raster", "labels", "value"};
    Output into;
    std::string kind, result;
    into.task = task;
    read(place, "name", into.name, "kind", kind, "unit", into.unit, "names", into.names, "scale", into.scale, "squeeze",
         into.squeeze, "velocity", into.velocity, "steps", into.steps, "groups", into.groups);
    into.tensor = task + "/" + into.name;
    const auto *known = std::find(std::begin(kKinds), std::end(kKinds), kind);
    read.require(known != std::end(kKinds), place + "/kind", "is none that this version knows");
    into.kind = static_cast<tessera_kind>(known - std::begin(kKinds));
    if (read.has(place + "/result")) {
        read(place, "result", result);
        into.result = task + "/" + (result.empty() ? into.name : result);
    }
    into.instead = read.has(place + "/instead") ? read.at(place + "/instead").get<float>() : std::nanf("");
    if (read.has(place + "/area")) {
        tessera_area &area = into.area;
        read(place + "/area", "x", area.x, "y", area.y, "z", area.z, "cell", area.cell, "height", area.height);
    }
    if (read.has(place + "/nowhere")) {
        into.nowhere = task + "/" + read.at(place + "/nowhere/0").get<std::string>();
        into.none = read.at(place + "/nowhere/1").get<uint8_t>();
    }
    if (read.has(place + "/doubt")) {
        into.doubt = task + "/" + read.at(place + "/doubt/0").get<std::string>();
        into.limit = read.at(place + "/doubt/1").get<double>();
    }
    into.suppression = read.at(place + "/suppression");
    return into;
}

void read_results(const Reader &read, Manifest &into) {
    for (const auto &task : read.at("/results").items()) {
        for (const std::string &place : read.items("/results/" + task.key())) {
            const Output &rules = into.results.emplace_back(read_output(read, task.key(), place));
            const auto tensor = std::find_if(into.outputs.begin(), into.outputs.end(),
                                             [&rules](const TensorInfo &each) { return each.name == rules.tensor; });
            read.require(tensor != into.outputs.end(), place, "is no output of the network");
            // Else the result would have less room than the numbers.
            read.require(!rules.squeeze || (tensor->shape.size() > 1 && tensor->shape[1] == 1), place + "/squeeze",
                         "is for an output with one channel");
        }
    }
}

Manifest read_fields(const Json &json, const Reader &read) {
    Manifest manifest;
    manifest.json = json;
    read_tensors(read, "/inputs", manifest.inputs);
    read_tensors(read, "/outputs", manifest.outputs);
    read_state(read, manifest);
    read("", "routes", manifest.routes, "folded", manifest.folded, "apart", manifest.apart, "release",
         manifest.release);
    for (const std::string &each : read.items("/banked")) {
        Module &module = manifest.banked.emplace_back();
        read(each, "name", module.name, "asks", module.asks);
    }
    if (read.has("/expires")) read("", "expires", manifest.expires);
    read.require(manifest.expires.empty() || parse_time(manifest.expires), "/expires", "is no time");
    read("", "name", manifest.name);
    read_conditions(read, manifest);
    read_results(read, manifest);
    read_preprocessing(read, manifest, manifest.preprocessing);
    for (const auto &[fact, input] : read.at("/steering/sensors").items())
        manifest.steering.sensors.emplace_back(fact, input.get<std::string>());
    read("/steering", "values", manifest.steering.values);
    manifest.tolerances = read.at("/tolerances");
    for (const std::string key : {"around", "state_step", "grey_levels", "rounded", "close"}) {
        const Json &value = read.at("/golden/" + key);
        read.require(value.is_number() && value >= (key == "state_step" ? 1 : 0) && value <= kLargest, "/golden/" + key,
                     "is no number that can be");
    }
    manifest.golden = read.at("/golden");
    for (const auto &each : json.items()) read.require(kKeys.count(each.key()), "/" + each.key(), "is not known");
    return manifest;
}

void require_schema(const Json &json, const std::string &file) {
    if (!json.is_object() || !json.contains("schema_version")) return;
    const Json &version = json["schema_version"];
    if (version.is_number_integer() && version >= kOldest && version <= kSchema) return;
    const bool newer = version.is_number_integer() && version > kSchema;
    throw refused(file, ": this bundle is schema ", version.dump(), ", this version reads ", kSchema,
                  newer ? "; update this program, or export again with it" : "; export again");
}

// Arrays of impossible or excessive sizes, and numbers that cells of points could not be computed from.
void require_sizes(const Manifest &manifest, const Reader &read) {
    const auto require = [&read](const std::string &place, const Shape &shape, bool more = true) {
        double size = shape.empty() || shape.size() > 8 ? 0 : 1;
        for (const int64_t side : shape) size *= static_cast<double>(std::max<int64_t>(0, side));
        read.require(size >= 1 && size <= 1e8 && more, place, "has sizes that cannot be");
    };
    for (const auto *side : {&manifest.inputs, &manifest.outputs})
        for (const TensorInfo &each : *side) require(each.name, each.shape);
    for (const StatePair &each : manifest.states) require(each.input, each.shape);
    const Preprocessing &settings = manifest.preprocessing;
    if (const std::optional<Pillars> &p = settings.pillars) {
        const auto fits = [&p](const std::array<double, 2> &range) {
            return std::abs(range[0]) < kLargest && std::abs(range[1]) < kLargest &&
                   (range[1] - range[0]) / p->cell < kLargest;
        };
        require("/preprocessing/pillars", {p->most, p->points, 5},
                p->cell > 0 && fits(p->x) && fits(p->y) && fits(p->z));
        require("/preprocessing/pillars", {p->rows, p->columns});
    }
    if (const std::optional<Pictures> &p = settings.pictures)
        require("/preprocessing/pictures", {static_cast<int64_t>(p->cameras.size()), p->height, p->width, 3},
                settings.admission.largest <= INT16_MAX);
}

}  // namespace

Json parse_json(const std::string &content) {
    bool deep = false;
    const auto shallow = [&deep](int depth, Json::parse_event_t, const Json &) {
        deep = deep || depth > 100;
        return !deep;
    };
    Json json = Json::parse(content, shallow, false);
    return deep ? Json(Json::value_t::discarded) : json;
}

Manifest parse_manifest(const std::string &content, const fs::path &path) {
    const std::string file = path.string();
    Json json = parse_json(content);
    if (json.is_discarded()) throw refused(file, ": is no JSON; export the bundle again");
    require_schema(json, file);
    if (json.is_object() && json.contains("schema_version") && json["schema_version"] == kOldest)
        json["results"] = results_of_schema_13(json);
    const Reader read(json, file);
    Manifest manifest = read_fields(json, read);
    require_sizes(manifest, read);
    return manifest;
}

}  // namespace tessera
