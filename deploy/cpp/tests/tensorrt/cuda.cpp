#include <cstdlib>
#include <cstring>
#include <utility>

#include "stand_in.hpp"

bool has_defect(const std::string &name) {
    const char *given = std::getenv("TESSERA_STAND_IN");
    return given && given == name;
}

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
    return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
    if (kind == cudaMemcpyDeviceToHost && has_defect("lost")) return cudaErrorNoDevice;
    stream->put([=] { std::memcpy(to, from, bytes); });
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned) {
    if (has_defect("no GPU")) return cudaErrorNoDevice;
    *stream = new CUstream_st;
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
    if (has_defect("lost")) return cudaErrorNoDevice;
    stream->pending.insert(stream->pending.end(), executable->work.begin(), executable->work.end());
    return cudaSuccess;
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
