// The bundle: a folder with all that a vehicle needs to run an exported network (deploy/bundle.py).
#include "bundle.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "error.hpp"

namespace tessera {

namespace {

constexpr const char *kManifest = "manifest.json", *kAgain = "; export the bundle again";

// The id of the key that an unchecked manifest names; empty if there is none.
std::string signer_of(const std::string &content) {
    const Json json = parse_json(content);
    if (!json.is_object() || !json.contains("signer") || !json["signer"].is_string()) return "";
    const std::string signer = json["signer"];
    const bool id = signer.size() == 16 && signer.find_first_not_of("0123456789abcdef") == std::string::npos;
    return id ? signer : "";
}

Manifest read_manifest(const fs::path &bundle, const Trust &trust) {
    require_inside(bundle, kManifest);
    const fs::path file = bundle / kManifest;
    if (!is_file(file))
        throw refused(bundle.string(), ": not a bundle (no ", kManifest, "); make one with `perception export`");
    const std::optional<std::string> content = read_file(file);
    if (!content) throw refused(file.string(), ": cannot read the manifest (", std::strerror(errno), ")");
    if (trust.required()) trust.require_signed(file, *content, signer_of(*content));
    Manifest manifest = parse_manifest(*content, file);
    if (trust.required()) trust.require_current(file, manifest.release, manifest.expires);
    return manifest;
}

// A route or a module must not require a fact that no frame can have.
void require_vocabulary(const Manifest &manifest, const fs::path &file) {
    const auto require = [&](const std::string &key, const std::vector<std::string> &names,
                             const std::vector<std::string> &known) {
        for (const std::string &name : names)
            for (const std::string &fact : split(name, '+'))
                if (fact != "base" && std::find(known.begin(), known.end(), fact) == known.end())
                    throw refused(file.string(), ": ", key, ": ", fact, " is none of ", join(known, ", "), kAgain,
                                  ", with this version");
    };
    std::vector<std::string> facts = manifest.condition_values;
    require("routes", manifest.routes, facts);
    require("apart", manifest.apart, facts);
    for (const char *fact : {"lidar", "cameras", "no-lidar", "no-cameras"}) facts.push_back(fact);
    for (const Module &module : manifest.banked) require("banked." + module.name + ".asks", module.asks, facts);
}

// The first three numbers of a compiler's version, such as those of `tensorrt 10.3.0`; none if it is not one.
std::vector<int> version_of(const std::string &compiler) {
    std::vector<int> numbers;
    for (const std::string &part : split(compiler.substr(std::min(compiler.size(), compiler.find(' ') + 1)), '.')) {
        if (part.empty() || part.size() > 9 || part.find_first_not_of("0123456789") != std::string::npos) return {};
        numbers.push_back(std::stoi(part));
    }
    if (numbers.size() >= 2) numbers.resize(3);
    return numbers.size() < 2 ? std::vector<int>() : numbers;
}

// Whether two names, such as `tensorrt 10.3.0` by trtexec and `tensorrt 10.3.0.30` by Python, are the same release.
bool is_same_compiler(const std::string &a, const std::string &b) {
    const bool same = !version_of(a).empty() && version_of(a) == version_of(b);
    return a == b || (same && a.substr(0, a.find(' ')) == b.substr(0, b.find(' ')));
}

const char *compiler_of(const std::string &target) {
    if (target.compare(0, 4, "rtx-") == 0) return "tensorrt_rtx";
    const bool known = target == "orin" || target == "thor" || target == "drive-orin" || target == "drive-thor";
    return known ? "tensorrt" : "";
}

// Whether a permit covers a plan for this target from this compiler, such as `tensorrt 10.3.0 with DLA 0`.
bool covers(const Json &permit, const std::string &target, const std::string &compiler) {
    const size_t name = compiler.find(' '), place = compiler.find(" with ");
    const std::vector<int> version = version_of(compiler.substr(0, place));
    if (version.empty() || compiler.substr(0, name) != compiler_of(target)) return false;
    const std::vector<int> first = permit.at("first"), end = permit.at("end"), found = {version[0], version[1]};
    return permit.at("target") == target && permit.at("dla") == (place != std::string::npos) && first <= found &&
           found < end;
}

bool is_record(const Json &json) {
    static const std::pair<const char *, bool (Json::*)() const noexcept> kinds[] = {
        {"sha256", &Json::is_string},      {"target", &Json::is_string},
        {"compiler", &Json::is_string},    {"layers", &Json::is_number_integer},
        {"seconds", &Json::is_number},     {"plan_bytes", &Json::is_number_integer},
        {"plan_sha256", &Json::is_string}, {"refittable", &Json::is_boolean},
        {"onnx_sha256", &Json::is_string}, {"weights_sha256", &Json::is_string},
    };
    return json.is_object() && json.size() == std::size(kinds) &&
           std::all_of(std::begin(kinds), std::end(kinds), [&](const auto &each) {
               return json.contains(each.first) && (json[each.first].*each.second)();
           });
}

}  // namespace

std::set<std::string> conditions_of(const std::string &route) {
    const std::vector<std::string> parts = split(route, '+');
    std::set<std::string> conditions(parts.begin(), parts.end());
    conditions.erase("base");
    return conditions;
}

fs::path python_path(const fs::path &path) {
    fs::path plain;
    for (const fs::path &part : path)
        if (!part.empty() && part != ".") plain /= part;
    return plain.empty() ? "." : plain;
}

Bundle Bundle::open(const fs::path &given, const Trust &trust) {
    const fs::path path = python_path(given);
    // The old bundle, if a process died while it replaced it, which left none.
    const fs::path old = path.parent_path() / ("." + path.filename().string() + ".old");
    std::error_code error;
    if (!fs::exists(fs::symlink_status(path, error)) && fs::is_directory(old, error)) fs::rename(old, path, error);
    return open_accepted(path, read_manifest(path, trust), trust);
}

Bundle Bundle::open_accepted(const fs::path &path, Manifest manifest, const Trust &trust) {
    const fs::path file = path / kManifest;
    require_vocabulary(manifest, file);
    Bundle bundle;
    bundle.path_ = path, bundle.manifest_ = std::move(manifest), bundle.trust_ = trust;
    std::vector<std::string> needed = {"model.onnx", "golden.safetensors"}, free = {"engines"};
    std::set<std::string> names = {kManifest, "manifest.sig"};
    for (const auto &[name, digest] : bundle.manifest_.json["files"].items()) {
        require_inside(path, name);
        names.insert(name);
    }
    for (const std::string &route : bundle.manifest_.apart) {
        needed.push_back("routes/" + route + "/" + kManifest);
        free.push_back("routes/" + route + "/engines");
    }
    for (const std::string &name : needed)
        if (!bundle.has(name)) throw refused(file.string(), ": does not name ", name, kAgain);
    require_nothing_else(path, names, free);
    for (const auto &[name, digest] : bundle.manifest_.json["files"].items()) {
        const std::string content = bundle.read(name);
        if (name == "model.onnx" || name == "model.cpu.onnx") require_self_contained(content, path / name);
    }
    for (const std::string &route : bundle.manifest_.apart) {
        const fs::path folder = path / "routes" / route;
        Manifest own = parse_manifest(bundle.read("routes/" + route + "/" + kManifest), folder / kManifest);
        bundle.routes_.emplace(route, open_accepted(folder, std::move(own), trust));
    }
    return bundle;
}

std::string Bundle::read(const std::string &name) const {
    return read_verified(path_ / name, manifest_.files.at(name), "export the bundle again");
}

Plan Bundle::plan(const std::string &target, const std::string &compiler) const {
    const std::string start = "engines/" + target;
    for (const char *suffix : {".json", ".plan", ".sig"}) require_inside(path_, start + suffix);
    const fs::path file = path_ / (start + ".json"), plan = path_ / (start + ".plan");
    const std::string remedy = text("run `perception build ", path_.string(), " --target ", target, "`");
    const std::optional<std::string> content = read_file(file);
    if (!content) throw refused(path_.string(), ": no engine for ", target, "; ", remedy);
    const Json record = parse_json(*content);
    if (!is_record(record)) throw refused(file.string(), ": not an engine record of this version; ", remedy);
    const bool is_signed = is_file(fs::path(file).replace_extension(".sig"));
    if (trust_.required() && is_signed) trust_.require_signed(file, *content, "");
    if (!is_whole(record, *content)) throw refused(file.string(), ": was changed (its sha256 differs); ", remedy);
    if (record["target"] != target)
        throw refused(file.string(), ": is of an engine for ", record["target"].get<std::string>(), "; ", remedy);
    const bool refitted = record["weights_sha256"] != record["onnx_sha256"];
    if (record["weights_sha256"] != manifest_.files.at("model.onnx") || (refitted && !record["refittable"]))
        throw refused(plan.string(), ": compiled from another network; ", remedy);
    if (trust_.required() && !is_signed) require_permitted(file, record);
    const std::string compiled_by = record["compiler"];
    if (!is_same_compiler(compiler, compiled_by.substr(0, compiled_by.find(" with "))))
        throw refused(plan.string(), ": compiled by ", compiled_by, ", but here is ", compiler, "; ", remedy);
    return {plan, read_verified(plan, record["plan_sha256"], remedy), refitted ? read("model.onnx") : ""};
}

// Plans that a device compiled itself may run without a signature, if the manifest permits it.
void Bundle::require_permitted(const fs::path &file, const Json &record) const {
    const std::string target = record["target"], compiler = record["compiler"];
    const Json &builds = manifest_.json.at("builds");
    std::string reason;
    if (record["weights_sha256"] != record["onnx_sha256"])
        reason = "the manifest cannot permit a plan of another bundle's network";
    else if (std::none_of(builds.begin(), builds.end(),
                          [&](const Json &each) { return covers(each, target, compiler); }))
        reason = text("the manifest does not permit ", compiler, " to compile for ", target, " without");
    else return;
    throw refused(file.string(), ": is not signed, and ", reason, "; sign it with `perception sign ", path_.string(),
                  " --target ", target, " --key PRIVATE`");
}

}  // namespace tessera
