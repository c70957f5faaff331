"""Running a plan: the order of calls, recording and its absence, refitting and refusals, without a GPU.

The bindings of CUDA are real; the driver below them is test_cuda's stand-in, and so is TensorRT here, whose "network"
copies its input to its output on the stream. Whether NVIDIA's own does what it says is for tests/test_gpu.py.
"""

from pathlib import Path

import pytest
from driver_standin import driver, run  # noqa: F401 - a fixture
from refits import no_gpu

STAND_IN = """
import sys
import types
import numpy as np
import pytest
from pathlib import Path
from cuda.bindings import driver
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
        code, = driver.cuMemcpyHtoDAsync(self.addresses["y"], self.addresses["x"], 24, handle)
        return not int(code)

class Engine:
    num_io_tensors = 2
    def __init__(self, content):
        self.content, self.refittable = content, b"refittable" in content
    def get_tensor_name(self, i):
        return "xy"[i]
    def get_tensor_dtype(self, name):
        return np.float32
    def get_tensor_shape(self, name):
        return [-1, 3] if name == "x" and b"open" in self.content else [2, 3]
    def get_tensor_profile_shape(self, name, profile):
        return [[1, 3], [1, 3], [2, 3]]  # least, best, most
    def get_tensor_mode(self, name):
        return {"x": "input", "y": "output"}[name]
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
from deploy.engines.tensorrt_plan import TensorRtEngine

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
    "a recorded frame is launched": """
engine = opened(b"plain")
assert engine.graph is not None
assert calls == ["context", "execute", "execute"]  # the first run, and the one that is recorded
copies(engine)
assert calls.count("execute") == 2
""",
    "what cannot be recorded is queued anew": """
engine = opened(b"waits")
assert engine.graph is None
copies(engine)
assert calls.count("execute") == 5
""",
    "what says so is not recorded": """
engine = opened(b"rtx")
assert engine.graph is None
copies(engine)
assert calls.count("execute") == 4
""",
    "weights are replaced before anything runs": """
copies(opened(b"refittable", b"weights"))
assert calls[:3] == ["refit", "context", "execute"]
""",
    "a plan that is not made for it takes no weights": """
with pytest.raises(InputError, match="^a.plan: was not compiled to be refitted, so it cannot take .* of model.onnx$"):
    opened(b"plain", b"weights")
""",
    "weights that do not fit": """
with pytest.raises(InputError, match="^a.plan: tensorrt 10.3.0 cannot give it .* model.onnx: .*no such node$"):
    opened(b"refittable", b"another graph")
with pytest.raises(InputError, match="^a.plan: tensorrt 10.3.0 cannot give it .*: it lacks conv.bias"):
    opened(b"refittable lacks", b"weights")
assert calls == []
""",
    "an input that the plan leaves open has the size it was compiled for": """
engine = opened(b"open")
assert calls[:2] == ["context", ("x", (2, 3))]
copies(engine)
with pytest.raises(InputError, match="x is float32 .1, 3., the plan takes float32 .2, 3.$"):
    engine.run({"x": np.zeros((1, 3), "f4")})
""",
    "a plan of another version": """
with pytest.raises(InputError, match="^a.plan: tensorrt 10.3.0 refuses it: wrong magic number$"):
    opened(b"bad")
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
@pytest.mark.parametrize("case", CASES)
def test_plan(driver: str, case: str, tmp_path: Path) -> None:  # noqa: F811
    pytest.importorskip("cuda.bindings")
    done = run(f"import os\nos.chdir({str(tmp_path)!r})\n{STAND_IN}{CASES[case]}print('done')", LD_LIBRARY_PATH=driver)
    assert done.stdout == "done\n", done.stderr
