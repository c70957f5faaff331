// Engines without a GPU: a plan is a line of JSON with the shapes of its open inputs and its DLA core, and an ONNX
// graph for ONNX Runtime. NVIDIA's classes call what unplayed.py makes of their headers; the functions here take its
// place.
#include <NvOnnxParser.h>
#include <onnxruntime_cxx_api.h>

#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>

#include "stand_in.hpp"
#include "unplayed.hpp"

namespace {

using nvinfer1::DataType, nvinfer1::Dims, nvinfer1::ILogger, nvinfer1::TensorIOMode;

const std::map<ONNXTensorElementDataType, std::pair<DataType, size_t>> kTypes = {
    // with bytes
    {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, {DataType::kFLOAT, 4}},
    {ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32, {DataType::kINT32, 4}},
    {ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, {DataType::kINT64, 8}},
    {ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, {DataType::kUINT8, 1}},
    {ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL, {DataType::kBOOL, 1}},
};

struct Tensor {
    TensorIOMode mode = TensorIOMode::kNONE;
    ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
    std::vector<int64_t> shape, largest;
};

// The graph of a plan, which a refit replaces.
struct Network {
    Ort::Env environment{ORT_LOGGING_LEVEL_ERROR, "stand-in"};
    Ort::Session session{nullptr};
    std::map<std::string, Tensor> tensors;

    void open(const std::string &onnx) {
        Ort::SessionOptions options;
        options.DisableMemPattern();
        session = Ort::Session(environment, onnx.data(), onnx.size(), options);
    }
    void list(const nlohmann::json &shapes) {
        const Ort::AllocatorWithDefaultOptions memory;
        const auto add = [&](const char *name, TensorIOMode mode, const Ort::TypeInfo &type) {
            const auto info = type.GetTensorTypeAndShapeInfo();
            Tensor &tensor = tensors[name];
            tensor = {mode, info.GetElementType(), info.GetShape(), {}};
            tensor.largest = shapes.value(name, tensor.shape);
        };
        for (size_t i = 0; i < session.GetInputCount(); ++i)
            add(session.GetInputNameAllocated(i, memory).get(), TensorIOMode::kINPUT, session.GetInputTypeInfo(i));
        for (size_t i = 0; i < session.GetOutputCount(); ++i)
            add(session.GetOutputNameAllocated(i, memory).get(), TensorIOMode::kOUTPUT, session.GetOutputTypeInfo(i));
    }
};

Dims dims_of(const std::vector<int64_t> &shape) {
    Dims dims{static_cast<int32_t>(shape.size()), {}};
    std::copy(shape.begin(), shape.end(), dims.d);
    return dims;
}

class Context : public nvinfer1::IExecutionContext, public nvinfer1::apiv::UnplayedVExecutionContext {
   public:
    Context(const std::shared_ptr<Network> &network, ILogger &log) : network_(network), log_(log) {
        mImpl = this;
        for (const auto &[name, tensor] : network->tensors)
            if (tensor.mode == TensorIOMode::kINPUT) shapes_[name] = tensor.shape;
    }
    bool setInputShape(const char *name, const Dims &dims) noexcept override {
        shapes_[name].assign(dims.d, dims.d + dims.nbDims);
        return true;
    }
    bool setTensorAddress(const char *name, void *data) noexcept override {
        addresses_[name] = data;
        return network_->tensors.count(name) > 0;
    }
    bool enqueueV3(cudaStream_t stream) noexcept override {
        if (stream->captured && has_defect("no capture")) {
            stream->captured->valid = false;
            return false;
        }
        if (has_defect("noisy")) {
            const auto complain = [this] {
                for (int i = 0; i < 1000; ++i) log_.log(ILogger::Severity::kERROR, "a kernel\nfailed");
            };
            std::thread other(complain);
            complain();
            other.join();
            log_.log(ILogger::Severity::kERROR, "and that is why");
            return false;
        }
        for (const auto &[name, tensor] : network_->tensors)
            if (!addresses_.count(name)) {
                log_.log(ILogger::Severity::kERROR, (name + " has no\naddress").c_str());
                return false;
            }
        stream->put(
            [network = network_, shapes = shapes_, addresses = addresses_] { run(*network, shapes, addresses); });
        return true;
    }

   private:
    using Shapes = std::map<std::string, std::vector<int64_t>>;
    using Addresses = std::map<std::string, void *>;

    static void run(Network &network, const Shapes &shapes, const Addresses &addresses) {
        const auto memory = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeCPU);
        Ort::IoBinding binding(network.session);
        for (const auto &[name, tensor] : network.tensors) {
            const bool is_input = tensor.mode == TensorIOMode::kINPUT;
            const std::vector<int64_t> &shape = is_input ? shapes.at(name) : tensor.shape;
            size_t bytes = kTypes.at(tensor.type).second;
            for (const int64_t length : shape) bytes *= static_cast<size_t>(length);
            const auto value =
                Ort::Value::CreateTensor(memory, addresses.at(name), bytes, shape.data(), shape.size(), tensor.type);
            is_input ? binding.BindInput(name.c_str(), value) : binding.BindOutput(name.c_str(), value);
        }
        network.session.Run(Ort::RunOptions{nullptr}, binding);
    }

    std::shared_ptr<Network> network_;
    ILogger &log_;
    Shapes shapes_;
    Addresses addresses_;
};

class Engine : public nvinfer1::ICudaEngine, public nvinfer1::apiv::UnplayedVCudaEngine {
   public:
    Engine(const std::shared_ptr<Network> &network, ILogger &log) : network(network), log_(log) { mImpl = this; }
    nvinfer1::IExecutionContext *createExecutionContext(
        nvinfer1::ExecutionContextAllocationStrategy) noexcept override {
        return new Context(network, log_);
    }
    TensorIOMode getTensorIOMode(const char *name) const noexcept override { return of(name).mode; }
    DataType getTensorDataType(const char *name) const noexcept override { return kTypes.at(of(name).type).first; }
    Dims getTensorShape(const char *name) const noexcept override { return dims_of(of(name).shape); }
    Dims getProfileShape(const char *name, int32_t, nvinfer1::OptProfileSelector) const noexcept override {
        return dims_of(of(name).largest);
    }

    const std::shared_ptr<Network> network;

   private:
    Tensor of(const char *name) const {
        const auto found = network->tensors.find(name);
        return found == network->tensors.end() ? Tensor() : found->second;
    }

    ILogger &log_;
};

class Runtime : public nvinfer1::IRuntime, public nvinfer1::apiv::UnplayedVRuntime {
   public:
    explicit Runtime(ILogger &log) : log_(log) { mImpl = this; }
    void setDLACore(int32_t core) noexcept override { core_ = core; }
    nvinfer1::ICudaEngine *deserializeCudaEngine(const void *blob, std::size_t size) noexcept override {
        const std::string plan(static_cast<const char *>(blob), size);
        const size_t line = plan.find('\n');
        const auto network = std::make_shared<Network>();
        try {
            const auto header = nlohmann::json::parse(plan.substr(0, line));
            if (header.value("DLA core", -1) != core_) throw std::runtime_error("is for another DLA core");
            network->open(plan.substr(line + 1));
            network->list(header);
            return new Engine(network, log_);
        } catch (const std::exception &error) {
            log_.log(ILogger::Severity::kINFO, "read");
            log_.log(ILogger::Severity::kERROR, error.what());
            return nullptr;
        }
    }

   private:
    ILogger &log_;
    int32_t core_ = -1;
};

class Refitter : public nvinfer1::IRefitter, public nvinfer1::apiv::UnplayedVRefitter {
   public:
    explicit Refitter(Engine &engine) : engine(engine) { mImpl = this; }
    int32_t getMissingWeights(int32_t, const char **) noexcept override {
        return has_defect("missing weights") ? 1 : 0;
    }
    bool refitCudaEngine() noexcept override {
        engine.network->open(onnx);
        return true;
    }

    Engine &engine;
    std::string onnx;
};

class ParserRefitter : public nvonnxparser::UnplayedIParserRefitter {
   public:
    explicit ParserRefitter(Refitter &refitter) : refitter_(refitter) {}
    bool refitFromBytes(const void *onnx, size_t size, const char *) noexcept override {
        refitter_.onnx.assign(static_cast<const char *>(onnx), size);
        return true;
    }

   private:
    Refitter &refitter_;
};

}  // namespace

extern "C" int32_t getInferLibVersion() noexcept {
    return NV_TENSORRT_VERSION;
}
extern "C" void *createInferRuntime_INTERNAL(void *logger, int32_t) noexcept {
    return static_cast<nvinfer1::IRuntime *>(new Runtime(*static_cast<ILogger *>(logger)));
}
extern "C" void *createInferRefitter_INTERNAL(void *engine, void *, int32_t) noexcept {
    return static_cast<nvinfer1::IRefitter *>(
        new Refitter(static_cast<Engine &>(*static_cast<nvinfer1::ICudaEngine *>(engine))));
}
extern "C" void *createNvOnnxParserRefitter_INTERNAL(void *refitter, void *, int32_t) noexcept {
    return static_cast<nvonnxparser::IParserRefitter *>(
        new ParserRefitter(static_cast<Refitter &>(*static_cast<nvinfer1::IRefitter *>(refitter))));
}
