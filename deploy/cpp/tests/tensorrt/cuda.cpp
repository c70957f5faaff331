#include <cstdlib>
#include <cstring>
#include <utility>

#include "stand_in.hpp"

bool has_defect(const std::string &name) {
    const char *given = std::getenv("TESSERA_STAND_IN");
    return given && given == name;
}

#define FOR_TESTS __attribute__((visibility("default")))

namespace {

thread_local int current_device = 0;

cudaError_t error_of_work_on(cudaStream_t stream) {
    if (has_defect("illegal address")) return cudaErrorIllegalAddress;
    return stream->device == current_device ? cudaSuccess : cudaErrorInvalidResourceHandle;
}

}  // namespace

extern "C" {

cudaError_t cudaGetLastError() {
    return cudaSuccess;
}
const char *cudaGetErrorName(cudaError_t error) {
    return error == cudaErrorNoDevice ? "cudaErrorNoDevice" : "another";
}
const char *cudaGetErrorString(cudaError_t) {
    return "no CUDA-capable device is detected";
}
FOR_TESTS cudaError_t cudaGetDevice(int *device) {
    *device = current_device;
    return cudaSuccess;
}
FOR_TESTS cudaError_t cudaSetDevice(int device) {
    current_device = device;
    return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
    if (has_defect("no GPU")) return cudaErrorNoDevice;
    return has_defect("illegal address") ? cudaErrorIllegalAddress : cudaSuccess;
}

cudaError_t cudaMalloc(void **memory, size_t bytes) {
    *memory = std::malloc(bytes);
    std::memset(*memory, 0x7f, bytes);  // not zeros: large numbers, no index of a cell
    return cudaSuccess;
}
cudaError_t cudaFree(void *memory) {
    std::free(memory);
    return cudaSuccess;
}
cudaError_t cudaHostAlloc(void **memory, size_t bytes, unsigned) {
    return cudaMalloc(memory, bytes);
}
cudaError_t cudaFreeHost(void *memory) {
    return cudaFree(memory);
}
cudaError_t cudaMemsetAsync(void *memory, int value, size_t bytes, cudaStream_t stream) {
    stream->put([=] { std::memset(memory, value, bytes); });
    return error_of_work_on(stream);
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
    if (kind == cudaMemcpyDeviceToHost && has_defect("a frame fails")) return cudaErrorNoDevice;
    stream->put([=] { std::memcpy(to, from, bytes); });
    return error_of_work_on(stream);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned) {
    if (has_defect("no GPU")) return cudaErrorNoDevice;
    *stream = new CUstream_st;
    (*stream)->device = current_device;
    return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    delete stream;
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    for (const auto &each : stream->pending) each();
    stream->pending.clear();
    return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
    stream->captured = new CUgraph_st;
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    *graph = std::exchange(stream->captured, nullptr);
    if ((*graph)->valid) return cudaSuccess;
    delete std::exchange(*graph, nullptr);
    return cudaErrorStreamCaptureInvalidated;
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *executable, cudaGraph_t graph, unsigned long long) {
    *executable = new CUgraphExec_st{graph->work};
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
    if (has_defect("a frame fails")) return cudaErrorNoDevice;
    stream->pending.insert(stream->pending.end(), executable->work.begin(), executable->work.end());
    return error_of_work_on(stream);
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete graph;
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
    delete executable;
    return cudaSuccess;
}
}
