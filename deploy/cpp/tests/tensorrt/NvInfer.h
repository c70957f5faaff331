// What src/engine_tensorrt.cpp calls of TensorRT, for a stand-in that has nothing else; `tensorrt_headers` is compiled
// with NVIDIA's own declarations.
//
// ILogger and IRuntime have the layout of TensorRT for RTX 1.7, so that they also work with NVIDIA's library, which
// opens no plan without a GPU. The rest is as its documentation says, and only for tensorrt.cpp.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#define TRT_MAJOR_RTX 1
#define NV_TENSORRT_VERSION 10701

extern "C" int32_t getInferLibVersion() noexcept;

namespace nvinfer1 {

using AsciiChar = char;

enum class DataType : int32_t { kFLOAT = 0, kHALF = 1, kINT8 = 2, kINT32 = 3, kBOOL = 4, kUINT8 = 5, kINT64 = 8 };
enum class TensorIOMode : int32_t { kNONE = 0, kINPUT = 1, kOUTPUT = 2 };
enum class OptProfileSelector : int32_t { kMIN = 0, kOPT = 1, kMAX = 2 };

struct Dims {
    int32_t nbDims;
    int64_t d[8];
};

struct InterfaceInfo {
    const char *kind;
    int32_t major, minor;
};

class ILogger {
   public:
    virtual int32_t getAPILanguage() const noexcept { return 0; }
    virtual InterfaceInfo getInterfaceInfo() const noexcept { return {"ILogger", 1, 0}; }
    virtual ~ILogger() noexcept = default;
    enum class Severity : int32_t { kINTERNAL_ERROR = 0, kERROR = 1, kWARNING = 2, kINFO = 3, kVERBOSE = 4 };
    virtual void log(Severity severity, const AsciiChar *message) noexcept = 0;
};

class IExecutionContext {
   public:
    virtual ~IExecutionContext() noexcept = default;
    virtual bool setInputShape(const char *name, const Dims &dims) noexcept = 0;
    virtual bool setTensorAddress(const char *name, void *data) noexcept = 0;
    virtual bool enqueueV3(cudaStream_t stream) noexcept = 0;
};

class ICudaEngine {
   public:
    virtual ~ICudaEngine() noexcept = default;
    virtual IExecutionContext *createExecutionContext() noexcept = 0;
    virtual TensorIOMode getTensorIOMode(const char *name) const noexcept = 0;
    virtual DataType getTensorDataType(const char *name) const noexcept = 0;
    virtual Dims getTensorShape(const char *name) const noexcept = 0;
    virtual Dims getProfileShape(const char *name, int32_t profile, OptProfileSelector select) const noexcept = 0;
};

class IRefitter {
   public:
    virtual ~IRefitter() noexcept = default;
    virtual int32_t getMissingWeights(int32_t size, const char **names) noexcept = 0;
    virtual bool refitCudaEngine() noexcept = 0;
};

class IRuntime;

namespace apiv {

class VRuntime {
   public:
    virtual ~VRuntime() noexcept = default;
    virtual IRuntime *getPImpl() noexcept = 0;
    virtual ICudaEngine *deserializeCudaEngine(const void *blob, std::size_t size) noexcept = 0;
};

}  // namespace apiv

class IRuntime {
   public:
    virtual ~IRuntime() noexcept = default;
    ICudaEngine *deserializeCudaEngine(const void *blob, std::size_t size) noexcept {
        return mImpl->deserializeCudaEngine(blob, size);
    }

   protected:
    apiv::VRuntime *mImpl = nullptr;
};

}  // namespace nvinfer1

extern "C" void *createInferRuntime_INTERNAL(void *logger, int32_t version) noexcept;
extern "C" void *createInferRefitter_INTERNAL(void *engine, void *logger, int32_t version) noexcept;

namespace nvinfer1 {

inline IRuntime *createInferRuntime(ILogger &logger) noexcept {
    return static_cast<IRuntime *>(createInferRuntime_INTERNAL(&logger, NV_TENSORRT_VERSION));
}
inline IRefitter *createInferRefitter(ICudaEngine &engine, ILogger &logger) noexcept {
    return static_cast<IRefitter *>(createInferRefitter_INTERNAL(&engine, &logger, NV_TENSORRT_VERSION));
}

}  // namespace nvinfer1
