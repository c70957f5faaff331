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

bool is_record(const Json &json) {
    static const std::pair<const char *, bool (Json::*)() const noexcept> kinds[] = {
        {"target", &Json::is_string},
        {"compiler", &Json::is_string},
        {"layers", &Json::is_number_integer},
        {"seconds", &Json::is_number},
        {"plan_bytes", &Json::is_number_integer},
        {"plan_sha256", &Json::is_string},
        {"refittable", &Json::is_boolean},
        {"onnx_sha256", &Json::is_string},
        {"weights_sha256", &Json::is_string},
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
    const Json record = parse_json(*content);
    if (!is_record(record)) throw refused(file.string(), ": not an engine record of this version; ", remedy);
    if (record["target"] != target)
        throw refused(file.string(), ": is of an engine for ", record["target"].get<std::string>(), "; ", remedy);
    const bool refitted = record["weights_sha256"] != record["onnx_sha256"];
    if (record["weights_sha256"] != files_.at("model.onnx") || (refitted && !record["refittable"]))
        throw refused(plan.string(), ": compiled from another network; ", remedy);
    if (trust_.required()) trust_.require_plan(file, *content, text(target, " of ", files_.at("model.onnx")), root_);
    const std::string compiled_by = record["compiler"];
    if (!is_same_compiler(compiler, compiled_by.substr(0, compiled_by.find(" with "))))
        throw refused(plan.string(), ": compiled by ", compiled_by, ", but here is ", compiler, "; ", remedy);
    return {plan, read_verified(plan, record["plan_sha256"], remedy), refitted ? read("model.onnx") : ""};
}

}  // namespace tessera
