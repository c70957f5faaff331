// What src/engine_tensorrt.cpp calls of TensorRT's ONNX parser.
#pragma once

#include <NvInfer.h>

namespace nvonnxparser {

class IParserRefitter {
   public:
    virtual ~IParserRefitter() noexcept = default;
    virtual bool refitFromBytes(const void *onnx, size_t size, const char *path = nullptr) noexcept = 0;
};

}  // namespace nvonnxparser

extern "C" void *createNvOnnxParserRefitter_INTERNAL(void *refitter, void *logger, int32_t version) noexcept;

namespace nvonnxparser {

inline IParserRefitter *createParserRefitter(nvinfer1::IRefitter &refitter, nvinfer1::ILogger &logger) noexcept {
    return static_cast<IParserRefitter *>(createNvOnnxParserRefitter_INTERNAL(&refitter, &logger, NV_TENSORRT_VERSION));
}

}  // namespace nvonnxparser
