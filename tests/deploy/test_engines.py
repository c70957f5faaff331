"""Running a plan without a GPU, with a stand-in for the driver; tests/deploy/test_gpu.py runs one on a GPU.

CUDA's bindings are real. The driver that they call is a stand-in in C that has the driver's signatures,
keeps "GPU memory" on the heap, and does copies when the stream is waited for, or when a graph of them is launched: so
what reaches a driver, and in what order, is tested, and nothing about a GPU is. TensorRT is a stand-in as well, whose
"network" copies its input to its output on the stream.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import onnx.parser
import pytest
from commands import one_line_error, without_ci
from refits import no_gpu
from repository import ROOT

from deploy.engines import cuda

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

STAND_IN = """
import ctypes
import gc
import os
import sys
import types
import numpy as np
import pytest
from pathlib import Path
from cuda.bindings import driver
from deploy.engines import cuda
from deploy.integrity import Content
from deploy.targets import find_target
from perception.errors import InputError

calls = []
trt = types.ModuleType("tensorrt")
trt.__version__ = "10.3.0"
trt.nptype = lambda dtype: dtype
class ILogger:
    ERROR = 1
trt.ILogger = ILogger
class TensorIOMode:
    INPUT, OUTPUT = "input", "output"
trt.TensorIOMode = TensorIOMode
class Context:
    def __init__(self, content):
        self.content, self.addresses = content, {}
        if b"rtx" in content:
            self.is_stream_capturable = lambda handle: False
    def set_input_shape(self, name, shape):
        calls.append((name, shape))
    def set_tensor_address(self, name, address):
        self.addresses[name] = address
    def execute_async_v3(self, handle):
        calls.append("execute")
        if b"waits" in self.content and int(driver.cuStreamSynchronize(handle)[0]):
            return False
        states = [name for name in ("state", "count") if name.encode() in self.content]
        pairs = [("y", ("x", *states)[-1]), *((f"next_{name}", "x") for name in states)]
        to_from = [[self.addresses[name] for name in pair] for pair in pairs]
        return not any(int(driver.cuMemcpyHtoDAsync(*each, 24, handle)[0]) for each in to_from)
class Engine:
    def __init__(self, content):
        self.content, self.refittable = content, b"refittable" in content
        states = [name for name in ("state", "count") if name.encode() in content]
        self.names = ["x", "y", *states, *(f"next_{name}" for name in states)]
        self.num_io_tensors = len(self.names)
    def get_tensor_name(self, i):
        return self.names[i]
    def get_tensor_dtype(self, name):
        return np.float32
    def get_tensor_shape(self, name):
        return [-1, 3] if name == "x" and b"open" in self.content else [2, 3]
    def get_tensor_profile_shape(self, name, profile):
        return [[1, 3], [1, 3], [2, 3]]  # least, best, most
    def get_tensor_mode(self, name):
        return "input" if name in ("x", "state", "count") else "output"
    def create_execution_context(self):
        calls.append("context")
        return Context(self.content)
class Runtime:
    def __init__(self, log):
        self.log = log
    def deserialize_cuda_engine(self, content):
        if content == b"bad":
            self.log.log(ILogger.ERROR, "wrong  magic\\nnumber")
            return None
        return Engine(content)
trt.Runtime = Runtime
class Refitter:
    def __init__(self, engine, log):
        self.engine = engine
    def get_missing_weights(self):
        return ["conv.bias"] if b"lacks" in self.engine.content else []
    def refit_cuda_engine(self):
        calls.append("refit")
        return True
trt.Refitter = Refitter
class OnnxParserRefitter:
    num_errors = 1
    def __init__(self, refitter, log):
        pass
    def refit_from_bytes(self, content):
        return content == b"weights"
    def get_error(self, i):
        return types.SimpleNamespace(desc=lambda: "no such node")
trt.OnnxParserRefitter = OnnxParserRefitter
sys.modules["tensorrt"] = trt
from deploy.engines.tensorrt import TensorRtEngine

def opened(content, weights=None):
    weights = None if weights is None else Content(Path("model.onnx"), weights)
    return TensorRtEngine(Content(Path("a.plan"), content), find_target("orin"), weights)

def copies(engine):
    frames = [np.arange(6, dtype=np.float32).reshape(2, 3) * n for n in (1, 2, 3)]
    outputs = [engine.run({"x": frame})["y"] for frame in frames]  # kept, so that none may be another's memory
    for frame, output in zip(frames, outputs):
        np.testing.assert_array_equal(output, frame)
"""

CASES = {
    "no device": """
os.environ["NO_DEVICE"] = "1"
with pytest.raises(cuda.NoGpuError, match=r"^no usable NVIDIA GPU .* .cuInit gives CUDA_ERROR_NO_DEVICE.$"):
    cuda.compute_capability()
del os.environ["NO_DEVICE"]
""",
    "buffers, streams and graphs reach the driver": """
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
""",
    "a recorded frame is launched": """
engine = opened(b"plain")
assert engine.graph is not None
assert calls == ["context", "execute", "execute"]  # the first run, and the one that is recorded
copies(engine)
assert calls.count("execute") == 2
""",
    "what cannot be recorded, or says so, is queued anew": """
for content, executed in ((b"waits", 5), (b"rtx", 4)):
    calls.clear()
    engine = opened(content)
    assert engine.graph is None
    copies(engine)
    assert calls.count("execute") == executed
""",
    "weights are replaced before anything runs": """
copies(opened(b"refittable", b"weights"))
assert calls[:3] == ["refit", "context", "execute"]
""",
    "a plan or weights that do not fit": """
for content, weights, said in (
    (b"bad", None, "tensorrt 10.3.0 refuses it: wrong magic number$"),
    (b"plain", b"weights", "was not compiled to be refitted, so it cannot take .* of model.onnx$"),
    (b"refittable", b"another graph", "tensorrt 10.3.0 cannot give it .* model.onnx: .*no such node$"),
    (b"refittable lacks", b"weights", "tensorrt 10.3.0 cannot give it .*: it lacks conv.bias"),
):
    with pytest.raises(InputError, match="^a.plan: " + said):
        opened(content, weights)
assert calls == []
""",
    "an input that the plan leaves open has the size it was compiled for": """
engine = opened(b"open")
assert calls[:2] == ["context", ("x", (2, 3))]
copies(engine)
with pytest.raises(InputError, match="x is float32 .1, 3., the plan takes float32 .2, 3.$"):
    engine.run({"x": np.zeros((1, 3), "f4")})
""",
    "each of several states goes on from run to run in two buffers": """
for content in (b"state", b"state rtx", b"state count", b"state count rtx"):  # recorded, and queued anew
    calls.clear()
    engine = opened(content)
    states = [engine.new_state() for _ in range(2)]
    frames = [np.arange(6, dtype=np.float32).reshape(2, 3) + 10 * n for n in range(12)]
    before = [np.zeros((2, 3), np.float32)] * 2
    for i, frame in enumerate(frames):
        one = i % 3 % 2  # in turns, but not one after the other
        if i == 7:
            states[one].clear()
            before[one] = np.zeros((2, 3), np.float32)
        np.testing.assert_array_equal(engine.run({"x": frame}, states[one])["y"], before[one])
        before[one] = frame
        for state, expected in zip(states, before):
            for name, array in state.read().items():
                assert name.encode() in content
                np.testing.assert_array_equal(array, expected)
    # The first run, its record, and a record for each state and buffer; or each run.
    assert calls.count("execute") == (6 if engine.graph else 1 + len(frames))
assert opened(b"plain").new_state() is None
with pytest.raises(InputError, match="^TensorRT cannot run the network: it takes a state$"):
    opened(b"state").run({"x": frames[0]})
""",
    "inputs that are not the network's": """
engine = opened(b"plain")
wrong = {"is missing": {}, "is float64 .2, 3.": {"x": np.zeros((2, 3))}, "is float32 .6,.": {"x": np.zeros(6, "f4")}}
for said, inputs in wrong.items():
    with pytest.raises(InputError, match=f"^TensorRT cannot run the network: x {said}, the plan takes float32 .2, 3.$"):
        engine.run(inputs)
copies(engine)
""",
}  # fmt: skip


@no_gpu
def test_calls_reach_the_driver_in_their_order(tmp_path: Path) -> None:
    """All cases in one process, whose environment names the stand-in."""
    pytest.importorskip("cuda.bindings")
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to make the stand-in for the driver with")
    (tmp_path / "driver.c").write_text(DRIVER)
    command = [compiler, "-shared", "-fPIC", "-w", "-o", "libcuda.so.1", "driver.c", "-ldl"]
    subprocess.run(command, check=True, cwd=tmp_path)
    code = f"{STAND_IN}\nfor name, case in {CASES!r}.items():\n    print(name)\n    calls.clear()\n    exec(case)\n"
    environment = {"PYTHONPATH": str(ROOT), "LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == [*CASES]


@no_gpu
def test_no_gpu_and_no_bindings_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cuda.bindings")
    said = "^no NVIDIA GPU driver on this machine; run TensorRT plans where there is a GPU$"
    with pytest.raises(cuda.NoGpuError, match=said):
        cuda.compute_capability()
    for name in ("cuda", "cuda.bindings", "cuda.bindings.driver"):
        monkeypatch.setitem(sys.modules, name, None)
    remedy = "no TensorRT plan runs without it: pip install 'cuda-bindings>=12.8,<13'"
    with one_line_error(exactly=f"cuda-bindings is not installed here, and {remedy}"):
        cuda.compute_capability()


def test_onnx_runtime_reports_nothing_of_what_it_runs(tmp_path: Path) -> None:
    """Where it would, it also stores an identifier of the machine. Continuous integration is left out of that."""
    graph = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 18]> relu (float[4] x) => (float[4] y) {y = Relu(x)}'
    )
    code = "from deploy.engines import onnxruntime as engines; "
    code += f"engines.OnnxRuntimeEngine({graph.SerializeToString()!r})"
    environment = without_ci(tmp_path) | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-B", "-c", code], env=environment, check=True)
    assert not [*tmp_path.rglob("*onnxruntime*")]
