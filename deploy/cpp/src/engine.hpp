// What runs a network: ONNX Runtime, or an engine in a shared object of its own, such as TensorRT.
#pragma once

#include <memory>
#include <string>

#include "array.hpp"
#include "bundle.hpp"

namespace tessera {

// The states of a network where its engine computes.
class EngineState {
   public:
    virtual ~EngineState() = default;
    virtual void swap() = 0;                                 // after a run: back to what they were before
    virtual void clear() = 0;                                // zeros
    virtual void read(size_t index, Array &into) const = 0;  // one of `Manifest.states`, of its shape
};

class Engine {
   public:
    virtual ~Engine() = default;
    // Runs a frame. `state` has the states that it reads, and then the next ones; null for a network without states.
    // The outputs, which are the others, belong to the engine until its next run.
    virtual const Arrays &run(const Arrays &inputs, EngineState *state) = 0;
    virtual std::unique_ptr<EngineState> new_state() = 0;  // zeros; null without states
};

struct EngineOptions {
    std::string target;  // cpu, or the target of a plan
    std::string plugin;  // shared object; empty: libtessera_tensorrt.so
    int threads = 0;
};

std::unique_ptr<Engine> open_engine(const Bundle &bundle, const EngineOptions &options);
std::unique_ptr<Engine> open_plugin(const Bundle &bundle, const EngineOptions &options);  // of a target with a plan

}  // namespace tessera
