// An engine whose plan is a safetensors file of outputs, by number of the run: what a step takes without the network.
#include <cstring>

#include "engine.hpp"
#include "error.hpp"

namespace tessera {
namespace {

class RecordedState : public EngineState {
   public:
    explicit RecordedState(const Shape &shape) : values_(Array::of<float>(shape)), before_(values_) {}
    void swap() override { std::swap(values_, before_); }
    void clear() override { values_.clear(); }
    void read(Array &into) const override { into = values_; }
    void set(const Array &values) {
        swap();
        values_ = values;
    }

   private:
    Array values_, before_;
};

class RecordedEngine : public Engine {
   public:
    RecordedEngine(const Manifest &manifest, const Plan &plan) : manifest_(manifest) {
        const std::string &content = plan.content;
        uint64_t length = 0;
        std::memcpy(&length, content.data(), sizeof length);
        const Json header = Json::parse(content.substr(sizeof length, length));
        if (header.contains("__metadata__"))
            repeated_ = std::stoul(header["__metadata__"]["repeated"].get<std::string>());
        for (const auto &[name, info] : header.items()) {
            if (name == "__metadata__") continue;
            const size_t slash = name.find('/'), run = std::stoul(name.substr(0, slash));
            if (runs_.size() <= run) runs_.resize(run + 1);
            for (const TensorInfo &output : manifest.outputs) {
                if (output.name != name.substr(slash + 1)) continue;
                if (info["shape"].get<Shape>() != output.shape || info["dtype"] != kTypes[output.type].safetensors)
                    throw refused(plan.path.string(), ": ", name, " is not as the manifest says");
                Array array(output.type, output.shape);
                const char *from = content.data() + sizeof length + length + info["data_offsets"][0].get<size_t>();
                std::memcpy(array.data<char>(), from, array.byte_count());
                runs_[run].emplace(output.name, std::move(array));
            }
        }
    }

    // After the last run those behind the golden frames are repeated.
    const Arrays &run(const Arrays &, EngineState *state) override {
        const Arrays &outputs = runs_[next_];
        if (++next_ == runs_.size()) next_ = repeated_;
        if (state) static_cast<RecordedState *>(state)->set(outputs.at(kNextState));
        return outputs;
    }

    std::unique_ptr<EngineState> new_state() override {
        return manifest_.state ? std::make_unique<RecordedState>(manifest_.state->shape) : nullptr;
    }

   private:
    Manifest manifest_;
    std::vector<Arrays> runs_;
    size_t next_ = 0, repeated_ = 0;
};

}  // namespace
}  // namespace tessera

extern "C" TESSERA_API uint64_t tessera_engine_version() {
    return tessera::kEngineVersion;
}

extern "C" TESSERA_API const char *tessera_engine_compiler() {
    return "tensorrt_rtx 1.7.1.116";
}

extern "C" TESSERA_API tessera::Engine *tessera_open_engine(const tessera::Manifest &manifest,
                                                            const tessera::Plan &plan) {
    return new tessera::RecordedEngine(manifest, plan);
}
