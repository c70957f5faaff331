// A TensorRT plan on a GPU (deploy/engines/tensorrt.py): libtessera_tensorrt.so, which libtessera.so opens at run time.
//
// NVIDIA's documentation: "Performing Inference", "CUDA Graphs", "Refitting an Engine". One source is for TensorRT
// (from 10 on; Jetson, DRIVE) and for TensorRT for RTX.
#include <NvInfer.h>
#include <NvOnnxParser.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <type_traits>

#include "array.hpp"
#include "error.hpp"
#include "tessera_engine.h"

struct tessera_network {
    int device = 0;  // of CUDA
};
struct tessera_state {
    int device = 0;
};

namespace tessera {
namespace {

#ifdef TRT_MAJOR_RTX
constexpr const char *kCompiler = "tensorrt_rtx ";
#else
constexpr const char *kCompiler = "tensorrt ";
#endif

// Name and version of the library that is here, such as "tensorrt 10.3.0".
const char *compiler() {
    static char name[64];
    [[maybe_unused]] static const int length = [version = getInferLibVersion()] {
        const int major = version / 10000, minor = version / 100 % 100;
        return std::snprintf(name, sizeof name, "%s%d.%d.%d", kCompiler, major, minor, version % 100);
    }();
    return name;
}

void check(cudaError_t code, const char *call) {
    if (code) throw refused("CUDA: ", call, " gives ", cudaGetErrorName(code), " (", cudaGetErrorString(code), ")");
}

constexpr int kCurrent = -1;  // the device of the thread

// Runs `body` on the device of an engine or a state: CUDA's current device is of each thread. No exception leaves it.
template <typename Body>
tessera_status guarded(int device, char *error, const Body &body) {
    tessera_status status = TESSERA_FAILED;
    try {
        if (device != kCurrent) check(cudaSetDevice(device), "cudaSetDevice");
        return body(), TESSERA_OK;
    } catch (const Error &caught) {
        status = caught.status;
        std::snprintf(error, TESSERA_ENGINE_ERROR, "%s", caught.what());
    } catch (...) {
        std::snprintf(error, TESSERA_ENGINE_ERROR, "no memory left");  // nothing else throws
    }
    cudaGetLastError();  // else a later call would report it again
    const cudaError_t next = cudaDeviceSynchronize();
    if (next == cudaErrorNoDevice || next == cudaErrorInsufficientDriver) return status;  // there was no context
    return next ? TESSERA_LOST : status;
}

// Keeps the latest errors, which the calls themselves do not return. TensorRT may log from threads of its own.
class Log : public nvinfer1::ILogger {
   public:
    void log(Severity severity, const char *message) noexcept override {
        if (severity > Severity::kERROR) return;
        const std::lock_guard<std::mutex> lock(mutex_);
        errors_.append(errors_.empty() ? "" : " ").append(message);
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

class TensorRtEngine;

// States in two buffers each on the GPU, of which each run reads one and writes the other.
class DeviceState final : public tessera_state {
   public:
    DeviceState(const std::vector<size_t> &sizes, const Stream &stream) : stream_(stream) {
        check(cudaGetDevice(&device), "cudaGetDevice");
        for (std::vector<Buffer> &buffers : buffers_)
            for (const size_t bytes : sizes) buffers.emplace_back(bytes, stream);
    }
    ~DeviceState() { cudaSetDevice(device); }  // before its memory is freed
    void clear() {
        for (const Buffer &buffer : buffers_[latest_])
            check(cudaMemsetAsync(buffer.device(), 0, buffer.bytes, stream_.get()), "cudaMemsetAsync");
        wait(stream_);
    }
    void read(size_t index, float *into) const {
        latest(index).download(stream_);
        wait(stream_);
        std::memcpy(into, latest(index).host(), latest(index).bytes);
    }
    const Buffer &latest(size_t index) const { return buffers_[latest_][index]; }
    const Buffer &next(size_t index) const { return buffers_[1 - latest_][index]; }
    void swap() { latest_ = 1 - latest_; }
    // The captured work of an engine that reads the latest buffers; none if it is null, nothing before it was captured.
    std::optional<Graph> &graph_of(const TensorRtEngine *engine) { return graphs_[{engine, latest_}]; }

   private:
    const Stream &stream_;
    std::vector<Buffer> buffers_[2];
    int latest_ = 0;
    std::map<std::pair<const TensorRtEngine *, int>, std::optional<Graph>> graphs_;
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

class TensorRtEngine final : public tessera_network {
   public:
    explicit TensorRtEngine(const tessera_plan &plan) : path_(plan.path), stream_(new_stream()) {
        check(cudaGetDevice(&device), "cudaGetDevice");
        runtime_.reset(nvinfer1::createInferRuntime(log_));
        if (runtime_ && plan.dla_core >= 0) runtime_->setDLACore(plan.dla_core);
        if (runtime_) engine_.reset(runtime_->deserializeCudaEngine(plan.content, plan.size));
        if (!engine_) throw refused(path_, ": ", compiler(), " refuses it: ", log_.errors());
        if (plan.onnx) refit(plan.onnx, plan.onnx_size);
        context_.reset(engine_->createExecutionContext());
        if (!context_) throw refused(path_, ": ", compiler(), " cannot run it: ", log_.errors());
        const auto input = nvinfer1::TensorIOMode::kINPUT, output = nvinfer1::TensorIOMode::kOUTPUT;
        for (const auto *each = plan.inputs; each < plan.inputs + plan.input_count; ++each)
            address(each->name, inputs_.emplace_back(require(*each, each->name, input), stream_));
        for (const auto *each = plan.outputs; each < plan.outputs + plan.output_count; ++each)
            address(each->name, outputs_.emplace_back(require(*each, each->name, output), stream_));
        for (const auto *each = plan.states; each < plan.states + plan.state_count; ++each) {
            states_.emplace_back(each->name);
            state_sizes_.push_back(require(*each, each->name, input));
            require(*each, next(states_.back()).c_str(), output);
        }
        graph_ = prepare(plan.state_count ? new_state().get() : nullptr);
    }

    ~TensorRtEngine() { cudaSetDevice(device); }  // before all of it is freed

    std::unique_ptr<DeviceState> new_state() const { return std::make_unique<DeviceState>(state_sizes_, stream_); }

    void run(const void *const *inputs, void *const *outputs, DeviceState *state) {
        for (const Buffer &buffer : inputs_) std::memcpy(buffer.host(), *inputs++, buffer.bytes);
        if (const Graph &graph = state ? graph_of(*state) : graph_)
            check(cudaGraphLaunch(graph.get(), stream_.get()), "cudaGraphLaunch");
        else enqueue();
        wait(stream_);
        if (state) state->swap();
        for (const Buffer &buffer : outputs_) std::memcpy(*outputs++, buffer.host(), buffer.bytes);
    }

   private:
    // The bytes of a tensor. Throws unless the plan has it with this type and shape.
    size_t require(const tessera_tensor &tensor, const char *name, nvinfer1::TensorIOMode mode) {
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
        if (engine_->getTensorDataType(name) != kDataTypes[tensor.type] ||
            shape != Shape(tensor.shape, tensor.shape + tensor.rank))
            throw refused(path_, ": ", name, " has another type or shape than in the manifest; compile this bundle's ",
                          "network");
        return count(shape) * kTypes[tensor.type].bytes;
    }

    void address(const std::string &name, const Buffer &buffer) {
        if (!context_->setTensorAddress(name.c_str(), buffer.device()))
            throw refused(path_, ": ", compiler(), " cannot bind ", name, ": ", log_.errors());
    }

    static std::string next(const std::string &state) { return "next_" + state; }

    void bind(const DeviceState &state) {
        for (size_t i = 0; i < states_.size(); ++i) {
            address(states_[i], state.latest(i));
            address(next(states_[i]), state.next(i));
        }
    }

    // Runs once, since TensorRT needs it before a capture, and captures the work; null if it cannot be captured.
    Graph prepare(DeviceState *state) {
        if (state) bind(*state);
        enqueue();
        wait(stream_);
        return is_capturable(context_.get(), stream_.get()) ? capture() : nullptr;
    }

    // The captured work that reads the latest states; binds their buffers where there is none.
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
        for (const Buffer &buffer : inputs_) buffer.upload(stream_);
        if (!context_->enqueueV3(stream_.get()))
            throw refused(path_, ": ", compiler(), " cannot run it: ", log_.errors());
        for (const Buffer &buffer : outputs_) buffer.download(stream_);
    }

    // Replaces the weights by those of the same names in an ONNX graph.
    void refit(const void *onnx, size_t size) {
        const std::unique_ptr<nvinfer1::IRefitter> refitter(nvinfer1::createInferRefitter(*engine_, log_));
        const std::unique_ptr<nvonnxparser::IParserRefitter> parser(
            refitter ? nvonnxparser::createParserRefitter(*refitter, log_) : nullptr);
        if (!parser || !parser->refitFromBytes(onnx, size) || refitter->getMissingWeights(0, nullptr) ||
            !refitter->refitCudaEngine())
            throw refused(path_, ": ", compiler(), " cannot give it the weights of model.onnx: ", log_.errors());
    }

    const std::string path_;
    Log log_;
    const Stream stream_;
    std::unique_ptr<nvinfer1::IRuntime> runtime_;
    std::unique_ptr<nvinfer1::ICudaEngine> engine_;
    std::unique_ptr<nvinfer1::IExecutionContext> context_;
    std::vector<Buffer> inputs_, outputs_;  // in the plan's order
    std::vector<std::string> states_;
    std::vector<size_t> state_sizes_;  // bytes
    Graph graph_;  // with states, which keep graphs of their own, it only says that the work can be captured
};

}  // namespace
}  // namespace tessera

extern "C" const tessera_engine_table *tessera_engine() {
    using namespace tessera;
    static const tessera_engine_table table{
        TESSERA_ENGINE_VERSION,
        compiler(),
        [](const tessera_plan *plan, tessera_network **network, char *error) {
            return guarded(kCurrent, error, [&] { *network = new TensorRtEngine(*plan); });
        },
        [](tessera_network *network) { delete static_cast<TensorRtEngine *>(network); },
        [](tessera_network *network, const void *const *inputs, void *const *outputs, tessera_state *state,
           char *error) {
            return guarded(network->device, error, [&] {
                static_cast<TensorRtEngine *>(network)->run(inputs, outputs, static_cast<DeviceState *>(state));
            });
        },
        [](tessera_network *network, tessera_state **state, char *error) {
            return guarded(network->device, error,
                           [&] { *state = static_cast<TensorRtEngine *>(network)->new_state().release(); });
        },
        [](tessera_state *state) { delete static_cast<DeviceState *>(state); },
        [](tessera_state *state, char *error) {
            return guarded(state->device, error, [&] { static_cast<DeviceState *>(state)->clear(); });
        },
        [](tessera_state *state) { static_cast<DeviceState *>(state)->swap(); },
        [](tessera_state *state, size_t index, float *values, char *error) {
            return guarded(state->device, error, [&] { static_cast<DeviceState *>(state)->read(index, values); });
        }};
    return &table;
}
