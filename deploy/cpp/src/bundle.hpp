// A bundle on disk, whose every file is checked (deploy/bundle.py, integrity.py, signature.py, trust.py).
#pragma once

#include <filesystem>
#include <map>
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

std::string sha256(const std::string &content);  // hexadecimal

// The content of a file that has this digest. Throws Error if it is missing or was changed.
std::string read_verified(const fs::path &file, const std::string &digest, const std::string &remedy);

struct Plan {
    fs::path path;
    std::string content;
    std::string onnx;  // content of the graph whose weights it shall get; empty: it keeps its own
};

class Bundle {
   public:
    // Throws Error in the words of the Python package.
    static Bundle open(const fs::path &path, const Trust &trust);

    const fs::path &path() const { return path_; }
    const Manifest &manifest() const { return manifest_; }
    const std::map<std::string, Bundle> &routes() const { return routes_; }  // bundles of other routes, by name
    bool has(const std::string &name) const { return manifest_.files.count(name) > 0; }
    std::string read(const std::string &name) const;                         // a file that the manifest names
    std::string cpu_graph() const { return has("model.cpu.onnx") ? "model.cpu.onnx" : "model.onnx"; }
    // The plan in engines/, with its record checked (`Bundle.plan` in Python); compiler as "tensorrt 10.3.0".
    Plan plan(const std::string &target, const std::string &compiler) const;

   private:
    fs::path path_;
    Manifest manifest_;
    Trust trust_;
    std::map<std::string, Bundle> routes_;
};

// The tensors of a safetensors file. Throws Error naming the file if it is damaged.
Arrays read_safetensors(const std::string &content, const fs::path &file);

// A file with these tensors; for tests and examples.
std::string write_safetensors(const Arrays &arrays);

}  // namespace tessera
