// A bundle on disk, whose every file is checked (deploy/bundle.py, integrity.py, signature.py, trust.py).
#pragma once

#include <ctime>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "array.hpp"
#include "manifest.hpp"

namespace tessera {

namespace fs = std::filesystem;

// Who must have signed a bundle, and how old it may be.
struct Trust {
    std::vector<fs::path> keys;  // PEM; none: unsigned bundles of any age are accepted
    fs::path state;              // folder that keeps what ran
    bool allow_older = false;
    // Plans that were accepted without a signature, and are stored when they have run. Copies share them.
    std::shared_ptr<std::map<std::string, std::string>> opened = std::make_shared<std::map<std::string, std::string>>();

    bool required() const { return !keys.empty(); }
    // Throws unless the .sig file beside `file` is its signature by one of the keys.
    void require_signed(const fs::path &file, const std::string &content) const;
    // Throws unless a plan is signed or is the one that ran here; `place` is its target and network, `bundle` for
    // messages.
    void require_plan(const fs::path &record, const std::string &content, const std::string &place,
                      const fs::path &bundle) const;
    // Throws if it expired, or an older release than one that ran.
    void require_current(const fs::path &file, int64_t release, const std::string &expires) const;
    // Stores that this release ran, and the plans; atomically, and never a lower one.
    void accept(int64_t release) const;
};

// The conditions in a route's name: rain and night for rain+night.
std::set<std::string> conditions_of(const std::string &route);

// A time such as 2027-06-30T12:00:00Z; none if it is not one.
std::optional<time_t> parse_time(const std::string &expires);

std::string sha256(const std::string &content);  // hexadecimal
bool is_file(const fs::path &path);
std::optional<std::string> read_file(const fs::path &file);  // none if it is no file or cannot be read

// The content of a file that has this digest. Throws Error if it is missing or was changed.
std::string read_verified(const fs::path &file, const std::string &digest, const std::string &remedy);

// The digests of a SHA256SUMS, by file name. Throws if a line has another form, or a name leads out of the folder.
std::map<std::string, std::string> parse_sums(const std::string &content, const fs::path &file);

// Throws unless `name` is a plain relative path inside the folder, with links followed.
void require_inside(const fs::path &folder, const std::string &name);

// Throws if the folder has a file that is neither in `names` nor in one of the folders `free`.
void require_nothing_else(const fs::path &folder, const std::set<std::string> &names,
                          const std::vector<std::string> &free);

// Throws if a manifest has another schema version.
Manifest parse_manifest(const std::string &content, const fs::path &file);

struct Plan {
    fs::path path;
    std::string content;
    std::string onnx;   // content of the graph whose weights it shall get; empty: it keeps its own
    int dla_core = -1;  // for which it was compiled; -1: none
};

class Bundle {
   public:
    // Throws Error unless every hash and, with keys, the signature is right.
    static Bundle open(const fs::path &path, const Trust &trust);

    const fs::path &path() const { return path_; }
    const Manifest &manifest() const { return manifest_; }
    const std::map<std::string, Bundle> &routes() const { return routes_; }  // bundles of other routes, by name
    bool has(const std::string &name) const { return files_.count(name) > 0; }
    std::string read(const std::string &name) const;  // a file that SHA256SUMS names
    std::string cpu_graph() const { return has("model.cpu.onnx") ? "model.cpu.onnx" : "model.onnx"; }
    // The plan in engines/, with its record checked (`Bundle.plan` in Python); compiler as "tensorrt 10.3.0".
    Plan plan(const std::string &target, const std::string &compiler) const;

   private:
    // The bundle with these files, which SHA256SUMS of the folder `root` names in `path`, and those of other routes.
    static Bundle open_files(const fs::path &root, const fs::path &path, std::map<std::string, std::string> files,
                             const Trust &trust);

    fs::path root_, path_;
    std::map<std::string, std::string> files_;  // name -> sha256
    Manifest manifest_;
    Trust trust_;
    std::map<std::string, Bundle> routes_;
};

// The tensors of a safetensors file. Throws Error naming the file if it is damaged.
Arrays read_safetensors(const std::string &content, const fs::path &file);

}  // namespace tessera
