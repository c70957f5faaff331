// A bundle on disk, whose every file is checked (deploy/bundle.py, integrity.py, signature.py, trust.py).
#pragma once

#include <ctime>
#include <filesystem>
#include <map>
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
    fs::path state;              // folder that keeps the highest release that ran
    bool allow_older = false;

    bool required() const { return !keys.empty(); }
    // Throws unless the manifest's signature is of one of the keys.
    void require_signed(const fs::path &record, const std::string &content, const std::string &signer) const;
    // Throws if it expired, or an older release than one that ran.
    void require_current(const fs::path &file, int64_t release, const std::string &expires) const;
    // Stores that this release ran; atomically, and never a lower one.
    void accept(int64_t release) const;
};

// The conditions in a route's name: rain and night for rain+night.
std::set<std::string> conditions_of(const std::string &route);

// The path as Python's pathlib writes it, for messages.
fs::path python_path(const fs::path &path);

// A time such as 2027-06-30T12:00:00Z; none if it is not one.
std::optional<time_t> parse_time(const std::string &expires);

std::string sha256(const std::string &content);  // hexadecimal
bool is_file(const fs::path &path);
std::optional<std::string> read_file(const fs::path &file);  // none if it is no file or cannot be read

// The content of a file that has this digest. Throws Error if it is missing or was changed.
std::string read_verified(const fs::path &file, const std::string &digest, const std::string &remedy);

// Whether the content of a record is what Python writes, with its own sha256.
bool is_whole(const Json &record, const std::string &content);

// Throws unless `name` is a plain relative path inside the folder, with links followed.
void require_inside(const fs::path &folder, const std::string &name);

// Throws if the folder has a file that is neither in `names` nor in one of the folders `free`.
void require_nothing_else(const fs::path &folder, const std::set<std::string> &names,
                          const std::vector<std::string> &free);

// Throws if a tensor of the ONNX file is stored in another file, which no hash covers.
void require_self_contained(const std::string &content, const fs::path &file);

// Throws if a manifest has another schema version or was changed.
Manifest parse_manifest(const std::string &content, const fs::path &file);

struct Plan {
    fs::path path;
    std::string content;
    std::string onnx;  // content of the graph whose weights it shall get; empty: it keeps its own
};

class Bundle {
   public:
    // Throws Error unless every hash and, with keys, the signature is right.
    static Bundle open(const fs::path &path, const Trust &trust);

    const fs::path &path() const { return path_; }
    const Manifest &manifest() const { return manifest_; }
    const std::map<std::string, Bundle> &routes() const { return routes_; }  // bundles of other routes, by name
    bool has(const std::string &name) const { return manifest_.files.count(name) > 0; }
    std::string read(const std::string &name) const;  // a file that the manifest names
    std::string cpu_graph() const { return has("model.cpu.onnx") ? "model.cpu.onnx" : "model.onnx"; }
    // The plan in engines/, with its record checked (`Bundle.plan` in Python); compiler as "tensorrt 10.3.0".
    Plan plan(const std::string &target, const std::string &compiler) const;

   private:
    static Bundle open_accepted(const fs::path &path, Manifest manifest, const Trust &trust);
    void require_permitted(const fs::path &file, const Json &record) const;

    fs::path path_;
    Manifest manifest_;
    Trust trust_;
    std::map<std::string, Bundle> routes_;
};

// The tensors of a safetensors file. Throws Error naming the file if it is damaged.
Arrays read_safetensors(const std::string &content, const fs::path &file);

}  // namespace tessera
