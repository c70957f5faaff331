// The bundle: a folder with all that a vehicle needs to run an exported network (deploy/bundle.py).
#include "bundle.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "error.hpp"

namespace tessera {

namespace {

constexpr const char *kSums = "SHA256SUMS", *kManifest = "manifest.json", *kAgain = "; export the bundle again";

// A route or a module must not require a fact that no frame can have.
void require_vocabulary(const Manifest &manifest, const fs::path &file) {
    std::set<std::string> facts(manifest.condition_values.begin(), manifest.condition_values.end());
    facts.insert("base");
    const auto require = [&](const char *key, const std::vector<std::string> &names) {
        for (const std::string &name : names)
            for (const std::string &fact : split(name, '+'))
                if (!facts.count(fact))
                    throw refused(file.string(), ": ", key, ": ", fact, " is nothing that a frame can have", kAgain);
    };
    require("routes", manifest.routes);
    require("apart", manifest.apart);
    facts.insert({"lidar", "cameras", "no-lidar", "no-cameras"});
    for (const auto &[fact, input] : manifest.steering.sensors) facts.insert({fact, "no-" + fact});
    for (const Module &module : manifest.banked) require("banked", module.asks);
}

// Whether two names, such as `tensorrt 10.3.0` by trtexec and `tensorrt 10.3.0.30` by Python, are the same release.
bool is_same_compiler(const std::string &a, const std::string &b) {
    const auto release = [](const std::string &compiler) {
        std::vector<std::string> numbers = split(compiler, '.');
        numbers.resize(3, "0");
        return numbers;
    };
    return release(a) == release(b);
}

}  // namespace

std::set<std::string> conditions_of(const std::string &route) {
    const std::vector<std::string> parts = split(route, '+');
    std::set<std::string> conditions(parts.begin(), parts.end());
    conditions.erase("base");
    return conditions;
}

Bundle Bundle::open(const fs::path &given, const Trust &trust) {
    const fs::path path = (given / "").parent_path();  // without a slash at its end
    // The old bundle, if a process died while it replaced it, which left none.
    const fs::path old = path.parent_path() / ("." + path.filename().string() + ".old");
    std::error_code error;
    if (!fs::exists(fs::symlink_status(path, error)) && fs::is_directory(old, error)) fs::rename(old, path, error);
    require_inside(path, kSums);
    const fs::path sums = path / kSums;
    const std::optional<std::string> content = read_file(sums);
    if (!content) throw refused(path.string(), ": not a bundle (no ", kSums, "); make one with `perception export`");
    if (trust.required()) trust.require_signed(sums, *content);
    Bundle bundle = open_files(path, path, parse_sums(*content, sums), trust);
    if (trust.required()) trust.require_current(path / kManifest, bundle.manifest_.release, bundle.manifest_.expires);
    std::set<std::string> names = {kSums, "SHA256SUMS.sig"};
    for (const auto &[name, digest] : bundle.files_) names.insert(name);
    std::vector<std::string> free = {"engines"};
    for (const auto &[route, own] : bundle.routes_) free.push_back("routes/" + route + "/engines");
    require_nothing_else(path, names, free);
    for (const auto &[name, digest] : bundle.files_) bundle.read(name);
    return bundle;
}

Bundle Bundle::open_files(const fs::path &root, const fs::path &path, std::map<std::string, std::string> files,
                          const Trust &trust) {
    Bundle bundle;
    bundle.root_ = root, bundle.path_ = path, bundle.files_ = std::move(files), bundle.trust_ = trust;
    for (const char *name : {kManifest, "model.onnx", "golden.safetensors"})
        if (!bundle.has(name))
            throw refused((root / kSums).string(), ": does not name ", (path / name).string(), kAgain);
    bundle.manifest_ = parse_manifest(bundle.read(kManifest), path / kManifest);
    require_vocabulary(bundle.manifest_, path / kManifest);
    for (const std::string &route : bundle.manifest_.apart) {
        const std::string folder = "routes/" + route + "/";
        std::map<std::string, std::string> inside;
        for (const auto &[name, digest] : bundle.files_)
            if (name.compare(0, folder.size(), folder) == 0) inside[name.substr(folder.size())] = digest;
        bundle.routes_.emplace(route, open_files(root, path / "routes" / route, std::move(inside), trust));
    }
    return bundle;
}

std::string Bundle::read(const std::string &name) const {
    return read_verified(path_ / name, files_.at(name), "export the bundle again");
}

Plan Bundle::plan(const std::string &target, const std::string &compiler) const {
    const std::string start = "engines/" + target;
    for (const char *suffix : {".json", ".plan", ".sig"}) require_inside(path_, start + suffix);
    const fs::path file = path_ / (start + ".json"), plan = path_ / (start + ".plan");
    const std::string remedy = text("run `perception build ", root_.string(), " --target ", target, "`");
    const std::optional<std::string> content = read_file(file);
    if (!content) throw refused(path_.string(), ": no engine for ", target, "; ", remedy);
    try {
        const Json record = parse_json(*content);
        const std::string made_for = record.at("target"), compiled_by = record.at("compiler"),
                          of = record.at("onnx_sha256"), weights = record.at("weights_sha256");
        const bool refitted = weights != of, refittable = record.at("refittable");
        if (made_for != target) throw refused(file.string(), ": is of an engine for ", made_for, "; ", remedy);
        if (weights != files_.at("model.onnx") || (refitted && !refittable))
            throw refused(plan.string(), ": compiled from another network; ", remedy);
        if (trust_.required())
            trust_.require_plan(file, *content, text(target, " of ", files_.at("model.onnx")), root_);
        const size_t end = compiled_by.find(" with DLA 0");
        if (!is_same_compiler(compiler, compiled_by.substr(0, end)))
            throw refused(plan.string(), ": compiled by ", compiled_by, ", but here is ", compiler, "; ", remedy);
        return {plan, read_verified(plan, record.at("plan_sha256"), remedy), refitted ? read("model.onnx") : "",
                end == std::string::npos ? -1 : 0};
    } catch (const Json::exception &) {
        throw refused(file.string(), ": not an engine record of this version; ", remedy);
    }
}

}  // namespace tessera
