"""A stand-in for NVIDIA's driver."""

import shutil
import subprocess
import sys

import pytest
from repository import ROOT

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


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    root = str(ROOT)
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
