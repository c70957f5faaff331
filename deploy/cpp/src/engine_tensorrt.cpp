// A TensorRT plan on a GPU (deploy/engines/tensorrt.py): libtessera_tensorrt.so, which libtessera.so opens at run time.
//
// NVIDIA's documentation: "Performing Inference", "CUDA Graphs", "Refitting an Engine". One source is for TensorRT
// (from 10 on; Jetson, DRIVE) and for TensorRT for RTX.
#include <NvInfer.h>
#include <NvOnnxParser.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <type_traits>

#include "engine.hpp"
#include "error.hpp"

namespace tessera {
namespace {

#ifdef TRT_MAJOR_RTX
constexpr const char *kCompiler = "tensorrt_rtx ";
#else
constexpr const char *kCompiler = "tensorrt ";
#endif

// Name and version of the library that is here, such as "tensorrt 10.3.0".
const std::string &compiler() {
    static const std::string name = [] {
        const int version = getInferLibVersion();
        return text(kCompiler, version / 10000, '.', version / 100 % 100, '.', version % 100);
    }();
    return name;
}

void check(cudaError_t code, const char *call) {
    if (code == cudaSuccess) return;
    cudaGetLastError();  // else a later call would report it again
    throw refused("CUDA: ", call, " gives ", cudaGetErrorName(code), " (", cudaGetErrorString(code), ")");
}

// Keeps the latest errors, which the calls themselves do not return. TensorRT may log from threads of its own.
class Log : public nvinfer1::ILogger {
   public:
    void log(Severity severity, const char *message) noexcept override {
        if (severity > Severity::kERROR) return;
        const std::lock_guard<std::mutex> lock(mutex_);
        std::istringstream words(message);  // in one line
        for (std::string word; words >> word;) errors_ += (errors_.empty() ? "" : " ") + word;
        if (errors_.size() > kMost) errors_.erase(0, errors_.size() - kMost);
    }
    std::string errors() const {
        const std::lock_guard<std::mutex> lock(mutex_);
        return errors_;
    }

   private:
    static constexpr size_t kMost = 2000;  // characters
    mutable std::mutex mutex_;
    std::string errors_;
};

template <auto free>
struct Free {
    template <typename T>
    void operator()(T *each) const {
        free(each);
    }
};
using Stream = std::unique_ptr<std::remove_pointer_t<cudaStream_t>, Free<cudaStreamDestroy>>;
using Graph = std::unique_ptr<std::remove_pointer_t<cudaGraphExec_t>, Free<cudaGraphExecDestroy>>;

Stream new_stream() {
    cudaStream_t stream = nullptr;
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
    return Stream(stream);
}

void wait(const Stream &stream) {
    check(cudaStreamSynchronize(stream.get()), "cudaStreamSynchronize");
}

// Memory of the GPU and pinned memory of the host, zeros at first.
class Buffer {
   public:
    Buffer(size_t bytes, const Stream &stream) : bytes(bytes) {
        void *memory = nullptr;
        check(cudaMalloc(&memory, bytes), "cudaMalloc");
        device_.reset(memory);
        check(cudaHostAlloc(&memory, bytes, cudaHostAllocDefault), "cudaHostAlloc");
        host_.reset(memory);
        std::memset(memory, 0, bytes);  // an engine runs once before there is a frame
        // On this stream, since one that does not block waits for no other.
        check(cudaMemsetAsync(device_.get(), 0, bytes, stream.get()), "cudaMemsetAsync");
    }
    void upload(const Stream &stream) const {
        check(cudaMemcpyAsync(device_.get(), host_.get(), bytes, cudaMemcpyHostToDevice, stream.get()), "upload");
    }
    void download(const Stream &stream) const {
        check(cudaMemcpyAsync(host_.get(), device_.get(), bytes, cudaMemcpyDeviceToHost, stream.get()), "download");
    }
    void *device() const { return device_.get(); }
    void *host() const { return host_.get(); }

    const size_t bytes;

   private:
    std::unique_ptr<void, Free<cudaFree>> device_;
    std::unique_ptr<void, Free<cudaFreeHost>> host_;
};

// A state in two buffers on the GPU, of which each run reads one and writes the other.
class DeviceState : public EngineState {
   public:
    DeviceState(const StateInfo &info, const Stream &stream)
        : shape_(info.shape),
          stream_(stream),
          buffers_{{count(shape_) * sizeof(float), stream}, {count(shape_) * sizeof(float), stream}} {}
    void clear() override {
        check(cudaMemsetAsync(latest().device(), 0, latest().bytes, stream_.get()), "cudaMemsetAsync");
        wait(stream_);
    }
    void read(Array &into) const override {
        const Buffer &latest = buffers_[latest_];
        latest.download(stream_);
        wait(stream_);
        into.resize(shape_);
        std::memcpy(into.data<float>(), latest.host(), latest.bytes);
    }
    const Buffer &latest() const { return buffers_[latest_]; }
    const Buffer &next() const { return buffers_[1 - latest_]; }
    void swap() override { latest_ = 1 - latest_; }
    // The captured work of an engine that reads the latest buffer; none if it is null, nothing before it was captured.
    std::optional<Graph> &graph_of(const Engine *engine) { return graphs_[{engine, latest_}]; }

   private:
    Shape shape_;
    const Stream &stream_;
    Buffer buffers_[2];
    int latest_ = 0;
    std::map<std::pair<const Engine *, int>, std::optional<Graph>> graphs_;
};

// Whether the work of a context can be captured; TensorRT for RTX can tell, else the capture itself fails.
template <typename Context>
auto is_capturable(Context *context, cudaStream_t stream) -> decltype(context->isStreamCapturable(stream)) {
    return context->isStreamCapturable(stream);
}
bool is_capturable(void *, cudaStream_t) {
    return true;
}

// Of each Type; there is no float64.
constexpr nvinfer1::DataType kDataTypes[] = {nvinfer1::DataType::kFLOAT, nvinfer1::DataType(-1),
                                             nvinfer1::DataType::kINT32, nvinfer1::DataType::kINT64,
                                             nvinfer1::DataType::kUINT8, nvinfer1::DataType::kBOOL};

Shape shape_of(const nvinfer1::Dims &dims) {
    return Shape(dims.d, dims.d + std::clamp<int>(dims.nbDims, 0, std::size(dims.d)));
}

class TensorRtEngine final : public Engine {
   public:
    TensorRtEngine(const Manifest &manifest, const Plan &plan)
        : state_(manifest.state), path_(plan.path.string()), stream_(new_stream()) {
        runtime_.reset(nvinfer1::createInferRuntime(log_));
        if (runtime_) engine_.reset(runtime_->deserializeCudaEngine(plan.content.data(), plan.content.size()));
        if (!engine_) throw refused(path_, ": ", compiler(), " refuses it: ", log_.errors());
        if (!plan.onnx.empty()) refit(plan.onnx);
        context_.reset(engine_->createExecutionContext());
        if (!context_) throw refused(path_, ": ", compiler(), " cannot run it: ", log_.errors());
        for (const TensorInfo &info : manifest.inputs) bind(info, nvinfer1::TensorIOMode::kINPUT);
        for (const TensorInfo &info : manifest.outputs) bind(info, nvinfer1::TensorIOMode::kOUTPUT);
        const std::unique_ptr<EngineState> state = new_state();
        graph_ = prepare(static_cast<DeviceState *>(state.get()));
    }

    std::unique_ptr<EngineState> new_state() override {
        return state_ ? std::make_unique<DeviceState>(*state_, stream_) : nullptr;
    }

    const Arrays &run(const Arrays &inputs, EngineState *state) override {
        for (const auto &[name, buffer] : inputs_) {
            const Array &array = inputs.find(name)->second;
            if (array.byte_count() != buffer.bytes) throw refused(path_, ": takes ", name, " of another size");
            std::memcpy(buffer.host(), array.data<std::byte>(), buffer.bytes);
        }
        auto *device = static_cast<DeviceState *>(state);
        if (const Graph &graph = device ? graph_of(*device) : graph_)
            check(cudaGraphLaunch(graph.get(), stream_.get()), "cudaGraphLaunch");
        else enqueue();
        wait(stream_);
        if (device) device->swap();
        for (const auto &[name, buffer] : buffers_)
            std::memcpy(outputs_.find(name)->second.data<std::byte>(), buffer.host(), buffer.bytes);
        return outputs_;
    }

   private:
    // Gives a tensor of the manifest its buffer. Throws unless the plan has it with this type and shape.
    void bind(const TensorInfo &info, nvinfer1::TensorIOMode mode) {
        const char *name = info.name.c_str();
        const bool is_input = mode == nvinfer1::TensorIOMode::kINPUT;
        if (engine_->getTensorIOMode(name) != mode)
            throw refused(path_, ": has no ", is_input ? "input " : "output ", name, "; compile this bundle's network");
        Shape shape = shape_of(engine_->getTensorShape(name));
        const auto is_open = [](int64_t length) { return length < 0; };
        // Plans by trtexec keep a size open; the profile has it.
        if (is_input && std::any_of(shape.begin(), shape.end(), is_open)) {
            const nvinfer1::Dims dims = engine_->getProfileShape(name, 0, nvinfer1::OptProfileSelector::kMAX);
            context_->setInputShape(name, dims);
            shape = shape_of(dims);
        }
        if (engine_->getTensorDataType(name) != kDataTypes[info.type] || shape != info.shape)
            throw refused(path_, ": ", name, " has another type or shape than in the manifest; compile this bundle's ",
                          "network");
        if (info.name == kState || info.name == kNextState) return;  // in a DeviceState
        auto &buffers = is_input ? inputs_ : buffers_;
        const size_t bytes = count(shape) * kTypes[info.type].bytes;
        const Buffer &buffer = buffers.try_emplace(info.name, bytes, stream_).first->second;
        if (!is_input) outputs_.emplace(info.name, Array(info.type, shape));
        address(info.name, buffer);
    }

    void address(const std::string &name, const Buffer &buffer) {
        if (!context_->setTensorAddress(name.c_str(), buffer.device()))
            throw refused(path_, ": ", compiler(), " cannot bind ", name, ": ", log_.errors());
    }

    void bind(const DeviceState &state) {
        address(kState, state.latest());
        address(kNextState, state.next());
    }

    // Runs once, since TensorRT needs it before a capture, and captures the work; null if it cannot be captured.
    Graph prepare(DeviceState *state) {
        if (state) bind(*state);
        enqueue();
        wait(stream_);
        return is_capturable(context_.get(), stream_.get()) ? capture() : nullptr;
    }

    // The captured work that reads the latest state; binds the state's buffers where there is none.
    const Graph &graph_of(DeviceState &state) {
        std::optional<Graph> &graph = state.graph_of(this);
        if (!graph || !*graph) bind(state);
        if (!graph) graph = graph_ ? capture() : nullptr;
        return *graph;
    }

    // Null if the work allocates memory or waits for the GPU midway.
    Graph capture() {
        check(cudaStreamBeginCapture(stream_.get(), cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
        bool enqueued = true;
        try {
            enqueue();
        } catch (const Error &) {  // a call that is not allowed during a capture
            enqueued = false;
        }
        cudaGraph_t graph = nullptr;
        const bool ended = cudaStreamEndCapture(stream_.get(), &graph) == cudaSuccess;  // also after a failed one
        const std::unique_ptr<std::remove_pointer_t<cudaGraph_t>, Free<cudaGraphDestroy>> captured(graph);
        cudaGetLastError();
        if (!enqueued || !ended) return nullptr;
        cudaGraphExec_t executable = nullptr;
        check(cudaGraphInstantiateWithFlags(&executable, graph, 0), "cudaGraphInstantiateWithFlags");
        return Graph(executable);
    }

    // Puts the work of a frame on the stream.
    void enqueue() {
        for (const auto &[name, buffer] : inputs_) buffer.upload(stream_);
        if (!context_->enqueueV3(stream_.get()))
            throw refused(path_, ": ", compiler(), " cannot run it: ", log_.errors());
        for (const auto &[name, buffer] : buffers_) buffer.download(stream_);
    }

    // Replaces the weights by those of the same names in an ONNX graph.
    void refit(const std::string &onnx) {
        const std::unique_ptr<nvinfer1::IRefitter> refitter(nvinfer1::createInferRefitter(*engine_, log_));
        const std::unique_ptr<nvonnxparser::IParserRefitter> parser(
            refitter ? nvonnxparser::createParserRefitter(*refitter, log_) : nullptr);
        if (!parser || !parser->refitFromBytes(onnx.data(), onnx.size()) || refitter->getMissingWeights(0, nullptr) ||
            !refitter->refitCudaEngine())
            throw refused(path_, ": ", compiler(), " cannot give it the weights of model.onnx: ", log_.errors());
    }

    const std::optional<StateInfo> state_;
    const std::string path_;
    Log log_;
    const Stream stream_;
    std::unique_ptr<nvinfer1::IRuntime> runtime_;
    std::unique_ptr<nvinfer1::ICudaEngine> engine_;
    std::unique_ptr<nvinfer1::IExecutionContext> context_;
    std::map<std::string, Buffer> inputs_, buffers_;  // buffers_: of the outputs
    Arrays outputs_;
    Graph graph_;  // with a memory, whose graphs its states keep, it only says that the work can be captured
};

}  // namespace
}  // namespace tessera

extern "C" TESSERA_API uint64_t tessera_engine_version() {
    return tessera::kEngineVersion;
}

extern "C" TESSERA_API const char *tessera_engine_compiler() {
    return tessera::compiler().c_str();
}

extern "C" TESSERA_API tessera::Engine *tessera_open_engine(const tessera::Manifest &manifest,
                                                            const tessera::Plan &plan) {
    return new tessera::TensorRtEngine(manifest, plan);
}
