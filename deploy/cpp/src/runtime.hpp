// The runtime of a vehicle: takes frame after frame, and returns what is perceived (deploy/runtime.py).
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bundle.hpp"
#include "engine.hpp"
#include "golden.hpp"
#include "inputs.hpp"
#include "results.hpp"
#include "state.hpp"

namespace tessera {

// One of a bundle's networks, on an engine that has passed its golden frames.
struct Network {
    const Bundle *bundle;
    std::set<std::string> conditions;  // that must be known for it to be used; empty for the default network
    std::string name;                  // for messages
    Decoder decoder;
    std::unique_ptr<Engine> engine;
    std::unique_ptr<EngineState> golden_state = nullptr;
    std::vector<GoldenFrame> golden = {};
    Arrays golden_outputs = {};  // buffer

    const Arrays &run_golden(const Arrays &inputs);
};

// The states of a network from frame to frame of a drive, with the frame that they are of: the one before, unless that
// lacked a sensor which an earlier one had (perception/session.py).
class Carried {
   public:
    Carried(std::unique_ptr<EngineState> state, const Manifest &manifest)
        : state_(std::move(state)),
          manifest_(manifest),
          read_(manifest.states.size()),
          seen_(manifest.steering.sensors.size()),
          sees_(seen_) {}
    const Arrays &run(Engine &engine, Arrays &inputs, const Moment &moment);
    void forget() { known_ = false; }
    const std::vector<StatePair> &states() const { return manifest_.states; }
    // What the next frame begins with, until it is asked for again; null if no state has this output.
    const Array *find(std::string_view output) const;

   private:
    std::unique_ptr<EngineState> state_;
    const Manifest &manifest_;
    mutable std::vector<Array> read_;  // of `states`, since these stay where the engine computes
    std::vector<bool> seen_, sees_;    // which sensors the frame of the state had, and the frame has
    Moment of_state_, before_;         // of the frame of the state, and of the one before
    bool known_ = false;
};

class Runtime {
   public:
    Runtime(const std::filesystem::path &path, const Trust &trust, const EngineOptions &options);

    // `frame` may be changed.
    void step(Frame &frame, const Conditions &conditions);
    void check();    // the next golden frame of the next network
    void restart();  // begin anew with the next frame

    // TASK/NAME, inputs/NAME, outputs/NAME, next_NAME of a state; null if there is none. The name of each by index.
    const Array *find(std::string_view name) const;
    const char *name(size_t index) const {
        const size_t count = !latest_ ? 0 : outputs_ ? names_.size() : lasting_;
        return index < count ? names_[index].c_str() : nullptr;
    }
    std::optional<float> weight(std::string_view module) const;

    const Manifest &manifest() const { return bundle_.manifest(); }

    double preprocess = 0, engine = 0, postprocess = 0;  // seconds of the latest step

   private:
    void forget();
    Network &select(const Conditions &known);
    void list_names();

    Bundle bundle_;
    std::vector<Network> networks_;
    Admitter admitter_;
    Preprocessor preprocessor_;
    std::optional<Carried> carried_;  // none without a memory
    Network *latest_ = nullptr;
    Arrays inputs_, results_;
    const Arrays *outputs_ = nullptr;
    Moment moment_;
    size_t checked_ = 0, next_golden_ = 0;  // the network and its golden frame that are checked next
    std::vector<std::string> names_;
    size_t lasting_ = 0;  // how many of them are not of the engine's outputs, which come last
};

}  // namespace tessera
