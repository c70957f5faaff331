// An engine in a shared object of its own, such as libtessera_tensorrt.so, by its table of functions.
#include <dlfcn.h>

#include "engine.hpp"
#include "error.hpp"
#include "tessera_engine.h"

namespace tessera {
namespace {

using Table = tessera_engine_table;

template <typename Function, typename... Arguments>
void call(Function function, Arguments... arguments) {
    char error[TESSERA_ENGINE_ERROR] = "";
    if (const tessera_status status = function(arguments..., error))
        throw Error(status, text(error, status == TESSERA_LOST ? "; restart this process" : ""));
}

class PluginState : public EngineState {
   public:
    PluginState(const Table &table, tessera_network *network) : table_(table) {
        call(table.new_state, network, &state);
    }
    ~PluginState() override { table_.free_state(state); }
    void swap() override { table_.swap(state); }
    void clear() override { call(table_.clear, state); }
    void read(size_t index, Array &into) const override { call(table_.read, state, index, into.data<float>()); }

    tessera_state *state = nullptr;

   private:
    const Table &table_;
};

class PluginEngine : public Engine {
   public:
    PluginEngine(const Table &table, const Manifest &manifest, const Plan &plan)
        : table_(table), has_state_(manifest.state) {
        const auto describe = [](const std::string &name, Type type, const Shape &shape) {
            return tessera_tensor{name.c_str(), type, static_cast<int32_t>(shape.size()), shape.data()};
        };
        std::vector<tessera_tensor> inputs, outputs, states;
        for (const TensorInfo &info : manifest.inputs) {
            inputs.push_back(describe(info.name, info.type, info.shape));
            names_.push_back(info.name);
        }
        for (const TensorInfo &info : manifest.outputs) {
            outputs.push_back(describe(info.name, info.type, info.shape));
            Array &array = outputs_.emplace(info.name, Array(info.type, info.shape)).first->second;
            results_.push_back(array.data<std::byte>());
        }
        for (const StatePair &pair : manifest.states)
            states.push_back(describe(pair.input, TESSERA_FLOAT32, pair.shape));
        given_.resize(names_.size());
        const std::string path = plan.path.string();
        tessera_plan to{};
        to.path = path.c_str(), to.content = plan.content.data(), to.size = plan.content.size();
        if (!plan.onnx.empty()) to.onnx = plan.onnx.data(), to.onnx_size = plan.onnx.size();
        to.dla_core = plan.dla_core;
        to.inputs = inputs.data(), to.input_count = inputs.size();
        to.outputs = outputs.data(), to.output_count = outputs.size();
        to.states = states.data(), to.state_count = states.size();
        call(table.open, &to, &network_);
    }
    ~PluginEngine() override { table_.close(network_); }

    std::unique_ptr<EngineState> new_state() override {
        return has_state_ ? std::make_unique<PluginState>(table_, network_) : nullptr;
    }

    const Arrays &run(const Arrays &inputs, EngineState *state) override {
        for (size_t i = 0; i < names_.size(); ++i) given_[i] = inputs.find(names_[i])->second.data<std::byte>();
        call(table_.run, network_, given_.data(), results_.data(),
             state ? static_cast<PluginState *>(state)->state : nullptr);
        return outputs_;
    }

   private:
    const Table &table_;
    const bool has_state_;
    tessera_network *network_ = nullptr;
    std::vector<std::string> names_;   // of the inputs
    std::vector<const void *> given_;  // their arrays in a run
    Arrays outputs_;
    std::vector<void *> results_;  // the arrays of the outputs, in the plan's order
};

}  // namespace

std::unique_ptr<Engine> open_plugin(const Bundle &bundle, const EngineOptions &options) {
    const std::string name = options.plugin.empty() ? "libtessera_tensorrt.so" : options.plugin;
    void *library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) throw refused(options.target, ": ", dlerror(), "; install the library with this engine");
    const auto engine = reinterpret_cast<decltype(&tessera_engine)>(dlsym(library, "tessera_engine"));
    if (!engine) throw refused(name, ": is no engine for this library (it lacks tessera_engine)");
    const Table &table = *engine();
    if (table.version != TESSERA_ENGINE_VERSION)
        throw refused(name, ": is an engine for another version of this library; build both from the same source");
    return std::make_unique<PluginEngine>(table, bundle.manifest(), bundle.plan(options.target, table.compiler));
}

}  // namespace tessera
