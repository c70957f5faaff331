// Reads manifest.json into `Manifest` (deploy/manifest.py).
#include <algorithm>
#include <cmath>

#include "bundle.hpp"
#include "error.hpp"

namespace tessera {

namespace {

// A reader of schema N reads N - 1, too (docs/bundle_format.md).
constexpr int kOldest = 13, kSchema = 13, kLargest = 1'000'000;
const std::set<std::string> kKeys = {
    "precision", "blocks",  "opset",     "tolerances",       "inputs",        "outputs",        "routes",
    "folded",    "inline",  "banked",    "parameters",       "flops",         "operators",      "state",
    "name",      "release", "expires",   "structure_sha256", "preprocessing", "schema_version", "taxonomy",
    "rig",       "grid",    "head_grid", "postprocessing",   "steering",      "lidar",          "camera",
    "tasks",     "modules", "apart",     "golden",           "origin",
};

// A value of the manifest, with its place for messages.
class Value {
   public:
    Value(const Json &json, const std::string &file, std::string place)
        : json_(json), file_(file), place_(std::move(place)) {}

    // The member of this name.
    Value operator[](const std::string &key) const {
        require(json_.is_object(), "input should be an object");
        const std::string place = place_.empty() ? key : place_ + "." + key;
        Value(json_, file_, place).require(json_.contains(key), "field required");
        return {json_[key], file_, place};
    }

    bool has(const char *key) const { return json_.contains(key) && !json_[key].is_null(); }
    const Json &json() const { return json_; }

    std::vector<Value> items() const {
        require(json_.is_array(), "input should be a valid array");
        std::vector<Value> found;
        for (const auto &each : json_.items()) found.emplace_back(each.value(), file_, text(place_, ".", each.key()));
        return found;
    }

    std::vector<std::pair<std::string, Value>> members() const {
        require(json_.is_object(), "input should be an object");
        std::vector<std::pair<std::string, Value>> found;
        for (const auto &each : json_.items()) found.emplace_back(each.key(), (*this)[each.key()]);
        return found;
    }

    // Reads the member of this name.
    template <typename T>
    const Value &operator()(const char *key, T &into) const {
        (*this)[key].read(into);
        return *this;
    }

    void read(std::string &into) const { get(into, json_.is_string(), "string"); }
    void read(double &into) const { get(into, json_.is_number(), "number"); }
    void read(int64_t &into) const {
        const bool fits = !json_.is_number_unsigned() || json_.get<uint64_t>() <= INT64_MAX;  // else it would wrap
        get(into, json_.is_number_integer() && fits, "integer");
    }
    void read(int &into) const { get(into, json_.is_number_integer() && json_ >= 0 && json_ <= kLargest, "integer"); }
    void read(Type &into) const {
        for (const auto &type : kTypes)
            if (json_ == type.name) return void(into = type.type);
        require(false, "input should be a type that this version knows");
    }
    void read(std::array<double, 2> &into) const {
        require(items().size() == 2, "input should be a valid array");
        for (size_t i = 0; i < 2; ++i) items()[i].read(into[i]);
    }
    // Reads one of two words; `first`, whether it is the first of them.
    void read(bool &first, const char *one, const char *other) const {
        require(json_ == one || json_ == other, text("input should be '", one, "' or '", other, "'"));
        first = json_ == one;
    }
    template <typename T>
    void read(std::vector<T> &into) const {
        for (const Value &each : items()) each.read(into.emplace_back());
    }

    void require(bool right, const std::string &wrong) const {
        if (!right)
            throw refused(file_, ": ", place_.empty() ? "the text" : place_, ": ", wrong, "; export the bundle again");
    }

   private:
    template <typename T>
    void get(T &into, bool right, const char *kind) const {
        require(right, text("input should be a valid ", kind));
        into = json_.get<T>();
    }

    const Json &json_;
    const std::string &file_;
    const std::string place_;
};

void read_preprocessing(const Value &value, Preprocessing &read) {
    value("points", read.points);
    if (value.has("pillars")) {
        Pillars &p = read.pillars.emplace();
        value["pillars"]("rows", p.rows)("columns", p.columns)("cell", p.cell)("x", p.x)("y", p.y)("z", p.z)(
            "most", p.most)("points", p.points)["overflow"]
            .read(p.fullest, "fullest", "first");
    }
    if (value.has("pictures")) {
        Pictures &p = read.pictures.emplace();
        value["pictures"]("cameras", p.cameras)("height", p.height)("width", p.width)("steps", p.steps);
    }
    Admission &a = read.admission;
    value["admission"]("rigid", a.rigid)("upright", a.upright)("far", a.far)("narrowest", a.narrowest)(
        "largest", a.largest)("state_rigid", a.state_rigid);
}

Manifest read_fields(const Value &value) {
    Manifest read;
    read.json = value.json();
    value("precision", read.precision);
    const bool known = read.precision == "fp32" || read.precision == "fp16" || read.precision == "int8";
    value["precision"].require(known, "input should be 'fp32', 'fp16' or 'int8'");
    read.tolerances = value["tolerances"].json();
    for (auto [key, tensors] : {std::pair("inputs", &read.inputs), std::pair("outputs", &read.outputs)})
        for (const Value &each : value[key].items()) {
            TensorInfo &tensor = tensors->emplace_back();
            each("name", tensor.name)("shape", tensor.shape)("dtype", tensor.type);
        }
    value("routes", read.routes)("folded", read.folded);
    for (const Value &each : value["banked"].items()) {
        Module &module = read.banked.emplace_back();
        each("name", module.name)("asks", module.asks);
    }
    if (value.has("state")) {
        StateInfo &state = read.state.emplace();
        value["state"]("seconds", state.seconds)("speed", state.speed);
        for (const Value &pair : value["state"]["pairs"].items())
            pair("input", state.input)("output", state.output)("shape", state.shape = {});
    }
    value("schema_version", read.schema_version)("name", read.name)("release", read.release);
    if (value.has("expires")) value("expires", read.expires);
    value["expires"].require(read.expires.empty() || parse_time(read.expires), "input should be a valid datetime");
    for (const auto &[kind, values] : value["taxonomy"]["conditions"].members()) values.read(read.condition_values);
    for (const auto &[task, config] : value["tasks"].members()) read.tasks.push_back(task);
    read_preprocessing(value["preprocessing"], read.preprocessing);
    for (const auto &[fact, input] : value["steering"]["sensors"].members())
        input.read(read.steering.sensors.emplace_back(fact, "").second);
    value["steering"]("values", read.steering.values);
    read.postprocessing = value["postprocessing"].json();
    read.golden = value["golden"].json();
    for (const char *key : {"around", "state_step", "grey_levels", "rounded", "close"})
        value["golden"][key].require(value["golden"][key].json().is_number() && value["golden"][key].json() >= 0 &&
                                         value["golden"][key].json() <= kLargest,
                                     "input should be a valid number");
    int step = 0;
    value["golden"]("state_step", step)["state_step"].require(step > 0, "input should be greater than 0");
    value("apart", read.apart);
    for (const auto &[key, member] : value.members())
        member.require(kKeys.count(key), "extra inputs are not permitted");
    return read;
}

void require_schema(const Json &json, const std::string &file) {
    if (!json.is_object() || !json.contains("schema_version")) return;
    const Json &version = json["schema_version"];
    if (version.is_number_integer() && version >= kOldest && version <= kSchema) return;
    const bool newer = version.is_number_integer() && version > kSchema;
    throw refused(file, ": this bundle is schema ", version.dump(), ", this version reads ", kSchema,
                  newer ? "; update this program, or export again with it" : "; export again");
}

// The inputs of a memory and its pair must fit to each other.
void require_state(const Manifest &manifest, const std::string &file) {
    std::map<std::string, const TensorInfo *> tensors;
    for (const auto *side : {&manifest.inputs, &manifest.outputs})
        for (const TensorInfo &each : *side) tensors[each.name] = &each;
    size_t there = 0;
    const char *needed[] = {"state", "current_from_previous", "state_valid", "elapsed", "next_state"};
    for (const char *name : needed) there += tensors.count(name);
    const std::optional<StateInfo> &state = manifest.state;
    bool fits = !state && there == 0;
    if (state && there == std::size(needed)) {
        const TensorInfo &before = *tensors["state"], &after = *tensors["next_state"];
        fits = manifest.json["state"]["pairs"].size() == 1 && state->input == "state" &&
               state->output == "next_state" && state->shape == after.shape && before.shape == after.shape &&
               before.type == TESSERA_FLOAT32 && after.type == TESSERA_FLOAT32 &&
               manifest.json["state"]["pairs"][0].at("dtype") == kTypes[after.type].name;
    }
    if (!fits) throw refused(file, ": state: is not that of the network's inputs and outputs; export the bundle again");
}

// Refuses numbers and words that this version does not know.
void require_contract(const Manifest &manifest, const std::string &file) {
    const auto require = [&file](bool right, const char *section) {
        if (!right)
            throw refused(file, ": ", section,
                          ": is not that of this version; export the bundle again, with this version");
    };
    require(manifest.preprocessing.admission.largest <= INT16_MAX, "preprocessing");
    for (const auto &[task, rules] : manifest.postprocessing.items()) {
        if (!rules.is_object() || !rules.contains("suppression") || rules["suppression"].is_null()) continue;
        const Json &kind = rules["suppression"].at("kind"), &within = rules["suppression"].at("within");
        require((kind == "circle" || kind == "rotated") && (within == "class" || within == "group"), "postprocessing");
    }
}

// Arrays of impossible or excessive sizes, and numbers that cells of points could not be computed from.
void require_sizes(const Manifest &manifest, const std::string &file) {
    const auto require = [&file](const std::string &name, const Shape &shape, bool more = true) {
        double size = shape.empty() || shape.size() > 8 ? 0 : 1;
        for (const int64_t side : shape) size *= static_cast<double>(std::max<int64_t>(0, side));
        if (size < 1 || size > 1e8 || !more)
            throw refused(file, ": ", name, ": has sizes that cannot be; export the bundle again");
    };
    for (const auto *side : {&manifest.inputs, &manifest.outputs})
        for (const TensorInfo &each : *side) require(each.name, each.shape);
    const Preprocessing &settings = manifest.preprocessing;
    if (const std::optional<Pillars> &p = settings.pillars) {
        const auto fits = [&p](const std::array<double, 2> &range) {
            return std::abs(range[0]) < kLargest && std::abs(range[1]) < kLargest &&
                   (range[1] - range[0]) / p->cell < kLargest;
        };
        require("preprocessing.pillars", {p->most, p->points, 5},
                p->cell > 0 && fits(p->x) && fits(p->y) && fits(p->z));
        require("preprocessing.pillars", {p->rows, p->columns});
    }
    if (settings.pictures)
        require("preprocessing.pictures", {static_cast<int64_t>(settings.pictures->cameras.size()),
                                           settings.pictures->height, settings.pictures->width, 3});
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
    const Json json = parse_json(content);
    require_schema(json, file);
    const Value whole(json, file, "");
    whole.require(!json.is_discarded(), "invalid json");
    Manifest manifest = read_fields(whole);
    require_state(manifest, file);
    require_contract(manifest, file);
    require_sizes(manifest, file);
    return manifest;
}

}  // namespace tessera
