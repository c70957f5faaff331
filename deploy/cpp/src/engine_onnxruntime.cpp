#include <dlfcn.h>
#define ORT_API_MANUAL_INIT  // its library is opened at run time, so that any version from kOldest on can be installed
#include <onnxruntime_cxx_api.h>

#include <algorithm>

#include "engine.hpp"
#include "error.hpp"

namespace tessera {
namespace {

constexpr uint32_t kOldest = 21;  // ONNX Runtime 1.21

constexpr ONNXTensorElementDataType kElements[] = {
    ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32,
    ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,  ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL,
};

// A tensor on an array's memory.
Ort::Value view(const Array &array, const Shape &shape) {
    static const auto memory = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeCPU);
    const size_t bytes = count(shape) * kTypes[array.type()].bytes;
    void *data = const_cast<std::byte *>(array.data<std::byte>());
    return Ort::Value::CreateTensor(memory, data, bytes, shape.data(), shape.size(), kElements[array.type()]);
}

// States in two buffers each, of which each run reads one and writes the other.
class HostState : public EngineState {
   public:
    explicit HostState(const std::vector<StatePair> &states) {
        for (std::vector<Array> &buffers : buffers_)
            for (const StatePair &pair : states) buffers.push_back(Array::of<float>(pair.shape));
    }
    void clear() override {
        for (Array &buffer : buffers_[latest_]) buffer.clear();
    }
    void read(size_t index, Array &into) const override { into = latest(index); }
    const Array &latest(size_t index) const { return buffers_[latest_][index]; }
    const Array &next(size_t index) const { return buffers_[1 - latest_][index]; }
    void swap() override { latest_ = 1 - latest_; }

   private:
    std::vector<Array> buffers_[2];
    int latest_ = 0;
};

class OnnxRuntimeEngine : public Engine {
   public:
    OnnxRuntimeEngine(const std::string &onnx, const Manifest &manifest, int threads)
        : manifest_(manifest), environment_(ORT_LOGGING_LEVEL_ERROR, "tessera"), session_(nullptr) {
        environment_.DisableTelemetryEvents();  // else ONNX Runtime 1.29 and later report what they run
        Ort::SessionOptions options;
        options.SetLogSeverityLevel(3);
        // The memory pattern cache would grow with every new number of pillars.
        options.DisableMemPattern();
        // Idle threads sleep, since spinning would take cores from the vehicle's other processes.
        options.AddConfigEntry("session.intra_op.allow_spinning", "0");
        // Weights in another file, which no hash covers, are looked for where no file can be.
        options.AddConfigEntry("session.model_external_initializers_file_folder_path", "/dev/null");
        if (threads > 0) options.SetIntraOpNumThreads(threads);
        session_ = Ort::Session(environment_, onnx.data(), onnx.size(), options);
        binding_ = Ort::IoBinding(session_);
        for (const TensorInfo &output : manifest.outputs)
            outputs_.emplace(output.name, Array(output.type, output.shape));
    }

    std::unique_ptr<EngineState> new_state() override {
        return manifest_.state ? std::make_unique<HostState>(manifest_.states) : nullptr;
    }

    const Arrays &run(const Arrays &inputs, EngineState *state) override {
        const int64_t pillars = count_pillars(inputs);
        auto *host = static_cast<HostState *>(state);
        for (const TensorInfo &info : manifest_.inputs) {
            const Array &array = inputs.find(info.name)->second;
            shape_.assign(array.shape().begin(), array.shape().end());
            if (info.name.rfind("pillar_", 0) == 0) shape_[1] = pillars;  // only those that are there
            binding_.BindInput(info.name.c_str(), view(array, shape_));
        }
        for (auto &[name, array] : outputs_) binding_.BindOutput(name.c_str(), view(array, array.shape()));
        for (size_t i = 0; i < manifest_.states.size(); ++i) {
            const StatePair &pair = manifest_.states[i];
            binding_.BindInput(pair.input.c_str(), view(host->latest(i), pair.shape));
            binding_.BindOutput(pair.output.c_str(), view(host->next(i), pair.shape));
        }
        session_.Run(Ort::RunOptions{nullptr}, binding_);
        if (host) host->swap();
        return outputs_;
    }

   private:
    // At least one, as the network needs.
    static int64_t count_pillars(const Arrays &inputs) {
        const auto found = inputs.find("pillar_counts");
        if (found == inputs.end()) return 0;
        const auto *counts = found->second.data<int32_t>();
        const int64_t empty = std::count(counts, counts + found->second.size(), 0);
        return std::max<int64_t>(1, static_cast<int64_t>(found->second.size()) - empty);
    }

    Manifest manifest_;
    Ort::Env environment_;
    Ort::Session session_;
    Ort::IoBinding binding_{nullptr};
    Arrays outputs_;
    Shape shape_;
};

// Debian's library is named by its version, others by that of the interface.
bool load_onnxruntime() {
    const std::string versioned = text("libonnxruntime.so.1.", ORT_API_VERSION);
    void *library = nullptr;
    for (const char *name : {ONNXRUNTIME_LIBRARY, "libonnxruntime.so.1", versioned.c_str(), "libonnxruntime.so"})
        if (!library && *name) library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    const auto base = library ? reinterpret_cast<decltype(&OrtGetApiBase)>(dlsym(library, "OrtGetApiBase")) : nullptr;
    if (!base) throw refused("cpu: ", dlerror(), "; install ONNX Runtime 1.", kOldest, " or later");
    const OrtApi *api = base()->GetApi(kOldest);
    if (!api) throw refused("cpu: ONNX Runtime is ", base()->GetVersionString(), "; install 1.", kOldest, " or later");
    Ort::InitApi(api);
    return true;
}

}  // namespace

std::unique_ptr<Engine> open_engine(const Bundle &bundle, const EngineOptions &options) {
    if (options.target != "cpu") return open_plugin(bundle, options);
    [[maybe_unused]] static const bool loaded = load_onnxruntime();
    const std::string graph = bundle.cpu_graph();
    try {
        return std::make_unique<OnnxRuntimeEngine>(bundle.read(graph), bundle.manifest(), options.threads);
    } catch (const Ort::Exception &error) {
        throw refused((bundle.path() / graph).string(), ": ONNX Runtime refuses it: ", error.what());
    }
}

}  // namespace tessera
