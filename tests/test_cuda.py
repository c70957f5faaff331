"""CUDA through NVIDIA's bindings: what is said where there is no GPU, and the calls that are made where there is one.

The bindings are real. The driver that they call is, on a machine without one, a stand-in in C that has the driver's
signatures, keeps "GPU memory" on the heap, and does copies when the stream is waited for, or when a graph of them is
launched: so what reaches a driver, and in what order, is tested, and nothing about a GPU is.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_refit import no_gpu

DRIVER = r"""
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <dlfcn.h>

typedef struct { void *to; const void *from; size_t size; } Copy;
typedef struct { Copy copies[16]; int n; } Queue;
static Queue stream, recording;
static int recording_now, invalid, live;  /* live: allocations, streams and graphs that nobody has freed */

int cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, int *status) {
    char versioned[128];
    strcpy(versioned, name);
    *function = dlsym(RTLD_DEFAULT, strcat(versioned, "_v2"));
    if (!*function) *function = dlsym(RTLD_DEFAULT, name);
    if (status) *status = *function ? 0 : 1;
    return *function ? 0 : 500;
}
int cuGetProcAddress(const char *name, void **function, int version, uint64_t flags) {
    return cuGetProcAddress_v2(name, function, version, flags, NULL);
}
int cuInit(unsigned flags) { return getenv("NO_DEVICE") ? 100 : 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = &stream; return 0; }
int cuCtxSetCurrent(void *context) { return context == &stream ? 0 : 201; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? 8 : attribute == 76 ? 7 : -1;
    return 0;
}
int cuMemAlloc_v2(uint64_t *address, size_t size) { *address = (uint64_t)malloc(size); return live++, 0; }
int cuMemFree_v2(uint64_t address) { free((void *)address); return live--, 0; }
int cuMemHostAlloc(void **address, size_t size, unsigned flags) {
    *address = memset(malloc(size), 0xff, size);
    return live++, 0;
}
int cuMemFreeHost(void *address) { free(address); return live--, 0; }
int cuStreamCreate(void **handle, unsigned flags) { *handle = &stream; return live++, flags == 1 ? 0 : 1; }
int cuStreamDestroy_v2(void *handle) { return live--, 0; }
static int queue(void *to, const void *from, size_t size) {
    Queue *queue = recording_now ? &recording : &stream;
    queue->copies[queue->n++] = (Copy){to, from, size};
    return 0;
}
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t n, void *handle) { return queue((void *)to, from, n); }
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t n, void *handle) { return queue(to, (void *)from, n); }
int cuStreamSynchronize(void *handle) {
    if (recording_now) return invalid = 1, 900;
    for (int i = 0; i < stream.n; i++) memcpy(stream.copies[i].to, stream.copies[i].from, stream.copies[i].size);
    return stream.n = 0;
}
int cuStreamBeginCapture_v2(void *handle, int mode) { recording_now = 1; recording.n = 0; return mode == 1 ? 0 : 1; }
int cuStreamEndCapture(void *handle, void **graph) {
    recording_now = 0;
    *graph = invalid ? NULL : &recording;
    if (invalid) return invalid = 0, 901;
    return live++, 0;
}
int cuGraphInstantiateWithFlags(void **executable, void *graph, uint64_t flags) {
    *executable = memcpy(malloc(sizeof(Queue)), graph, sizeof(Queue));
    return live++, 0;
}
int cuGraphDestroy(void *graph) { return live--, 0; }
int cuGraphExecDestroy(void *executable) { free(executable); return live--, 0; }
int cuGraphLaunch(void *executable, void *handle) {
    Queue *graph = executable;
    memcpy(stream.copies + stream.n, graph->copies, graph->n * sizeof(Copy));
    stream.n += graph->n;
    return 0;
}
int left_behind(void) { return live; }
"""

USE = """
import ctypes
import gc
import numpy as np
from deploy.engines import cuda

def left():
    gc.collect()
    return ctypes.CDLL("libcuda.so.1").left_behind()

assert cuda.compute_capability() == 87
def use():
    stream = cuda.Stream()
    a, b = cuda.Buffer((2, 3), np.dtype("float32")), cuda.Buffer((5,), np.dtype("int64"))
    assert (a.host.shape, a.host.dtype, a.host.sum()) == ((2, 3), np.float32, 0)
    assert (b.host.shape, b.host.dtype, b.host.sum()) == ((5,), np.int64, 0)
    back = cuda.Buffer((2, 3), np.dtype("float32"))
    def queue():
        stream.upload(a)
        back_address, back.address = back.address, a.address  # what a network would have computed
        stream.download(back)
        back.address = back_address
    a.host[...] = 7
    queue()
    assert (back.host == 0).all()
    stream.wait()
    assert (back.host == 7).all()
    graph = stream.capture(queue)
    a.host[...] = np.arange(6).reshape(2, 3)
    stream.wait()
    assert (back.host == 7).all()  # recorded and not done
    for factor in (1, 2):
        a.host *= factor
        stream.launch(graph)
        stream.wait()
        np.testing.assert_array_equal(back.host, factor * np.arange(6).reshape(2, 3))
    def waits():
        queue()
        stream.wait()
    assert stream.capture(waits) is None
    queue()  # the stream goes on
    stream.wait()
    a.host[...] = 3
    assert left() > 0
use()
assert left() == 0
print("used")
"""


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": root} | environment,
    )


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder with the stand-in."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to make the stand-in for the driver with")
    folder = tmp_path_factory.mktemp("driver")
    (folder / "driver.c").write_text(DRIVER)
    command = [compiler, "-shared", "-fPIC", "-w", "-o", "libcuda.so.1", "driver.c", "-ldl"]
    subprocess.run(command, check=True, cwd=folder)
    return str(folder)


@no_gpu
def test_buffers_streams_and_graphs_reach_the_driver(driver: str) -> None:
    pytest.importorskip("cuda.bindings")
    done = run(USE, LD_LIBRARY_PATH=driver)
    assert done.stdout == "used\n", done.stderr


CAPABILITY = """
from deploy.engines import cuda
from perception.errors import InputError
try:
    print(cuda.compute_capability())
except InputError as error:
    print(type(error).__name__, error)
"""


@no_gpu
def test_no_gpu_is_one_line(driver: str) -> None:
    pytest.importorskip("cuda.bindings")
    said = "NoGpuError no NVIDIA GPU driver on this machine; run TensorRT plans where there is a GPU\n"
    assert run(CAPABILITY).stdout == said
    said = "NoGpuError no usable NVIDIA GPU on this machine (cuInit gives CUDA_ERROR_NO_DEVICE)\n"
    assert run(CAPABILITY, LD_LIBRARY_PATH=driver, NO_DEVICE="1").stdout == said


def test_no_bindings_is_one_line() -> None:
    said = "no TensorRT plan runs without it: pip install 'cuda-bindings>=12.8,<13'\n"
    without = run(f"import sys\nsys.modules['cuda'] = None\n{CAPABILITY}").stdout
    assert without == f"InputError cuda-bindings is not installed here, and {said}"
