"""Compile an ONNX graph to a TensorRT plan.

The code uses the API that `tensorrt` (10 and later; Jetson, DRIVE) and `tensorrt_rtx` (RTX GPUs) share. Compiling with
`tensorrt_rtx` needs no GPU, unless the plan is to be refittable.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from deploy.engine import EngineState
from deploy.engines import cuda
from deploy.integrity import Content
from deploy.targets import WITH_DLA, Target
from perception.errors import InputError
from perception.state import NEXT, states_of


@dataclass(frozen=True)
class CompiledPlan:
    content: bytes
    layers: int  # in the parsed network
    compiler: str  # name and version


def compiles_here(target: Target) -> bool:
    """Whether this machine can compile for the target; `tensorrt` compiles on the target's own GPU only."""
    if target.compiler != "tensorrt":
        return True
    if importlib.util.find_spec("tensorrt") is None:
        return False
    try:
        return cuda.compute_capability() in target.compute_capabilities
    except cuda.NoGpuError:
        return False


def why_not_run_here(target: Target) -> str | None:
    """Why plans for the target do not run on this machine; None where they do."""
    try:
        import_compiler(target)
        capability = cuda.compute_capability()
    except InputError as error:
        return str(error)
    if capability not in target.compute_capabilities:
        return f"the GPU here has compute capability {capability / 10:g}"
    return None


def build_engine(
    onnx: bytes,
    target: Target,
    dla: bool = False,
    refittable: bool = False,
    inputs: Mapping[str, tuple[int, ...]] | None = None,
) -> CompiledPlan:
    """Compile an ONNX graph for a target, on a machine where that is possible (`compiles_here`).

    Args:
        dla: place the layers that the first DLA can run on it, and the others on the GPU.
        refittable: without the optimisations that depend on the weights' values (`refit`). This needs a GPU.
        inputs: shape by name, at least for inputs with a dynamic dimension; the plan takes only this size.
    """
    trt = import_compiler(target)
    if refittable:
        _require_gpu(target)
    if trt.__version__ not in (versions := target.versions_for(dla)):
        purpose = " with a DLA" if dla else ""
        raise InputError(f"{target.name}: needs {target.compiler} {versions}{purpose}, but {trt.__version__} is here")
    log = make_logger(trt)
    builder = trt.Builder(log)
    # Strongly typed: TensorRT keeps the precision of the graph and does not lower it.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(onnx):
        raise InputError(f"{target.name}: {trt.__name__} {trt.__version__} refuses {_parser_error(parser, log)}")
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        if -1 in tuple(tensor.shape):
            tensor.shape = (inputs or {})[tensor.name]
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # its 10-bit mantissa is not FP32
    if target.compiler == "tensorrt_rtx":
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{target.compute_capabilities[0]}"), 0)
    if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
        # tensorrt_rtx from 1.2 on: a plan that allocates no memory while it runs can be captured in a CUDA graph.
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if refittable:
        config.set_flag(trt.BuilderFlag.REFIT)
    if dla:
        if not builder.num_DLA_cores:
            raise InputError(f"{target.name}: this module has no DLA; build without --dla")
        place_on_dla(trt, config)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise InputError(
            f"{target.name}: {trt.__name__} {trt.__version__} cannot compile the graph: {' '.join(log.errors)}"
        )
    return CompiledPlan(bytes(plan), network.num_layers, f"{compiler_version(target)}{WITH_DLA if dla else ''}")


def _require_gpu(target: Target) -> None:
    try:
        cuda.compute_capability()
    except cuda.NoGpuError:
        raise InputError(
            f"{target.name}: a refittable plan compiles only where there is an NVIDIA GPU; run this there, or leave "
            "out --refit"
        ) from None


def place_on_dla(trt: Any, config: Any) -> None:
    """Configure a builder to place the layers that DLA 0 can run on it, and the others on the GPU."""
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = 0
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)


def compiler_version(target: Target) -> str:
    """Name and version of the target's compiler on this machine; InputError if it is not installed."""
    trt = import_compiler(target)
    return f"{trt.__name__} {trt.__version__}"


def import_compiler(target: Target) -> Any:
    """Import the Python module of the target's compiler; InputError if it is not installed."""
    try:
        return importlib.import_module(target.compiler)
    except ImportError:
        where = "" if target.compiler == "tensorrt_rtx" else f" on the {target.device} itself"
        raise InputError(
            f"{target.name}: needs {target.compiler}{where}, which is not installed here: {target.install}"
        ) from None


def make_logger(trt: Any) -> Any:
    """A logger that keeps the errors and the name of the last parsed node."""

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.node = ""

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self.errors.append(" ".join(message.split()))
            elif message.startswith("Parsing node: "):
                self.node = message.removeprefix("Parsing node: ").strip()

    return Log()


def _parser_error(parser: Any, log: Any) -> str:
    """The parser's first error as 'node NAME [OPERATOR]: REASON'."""
    error = parser.get_error(0)
    # Errors from inside an operator's importer name no node; then it is the last parsed one.
    node = f"{error.node_name()} [{error.node_operator()}]" if error.node() >= 0 else log.node
    reason = error.desc().removeprefix(f"Invalid Node - {error.node_name()}").strip().splitlines()[0]
    # Without a GPU every API error ends with a note about the CUDA driver.
    reason = re.sub(r"\s*\[checkMacros.*", "", reason)
    code = str(error.code()).split(".")[-1].split(":")[0].lower().replace("_", " ")
    return f"{f'node {node}' if node else 'the file'}: {reason} ({code}, {error.func()})"


class TensorRtState:
    """States in two buffers each on the GPU, of which each run reads one and writes the other.

    `graphs` has the work for each engine and the buffers that it reads, as `TensorRtEngine.graph`.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], stream: cuda.Stream) -> None:
        kind = np.dtype(np.float32)
        self.buffers = [{name: cuda.Buffer(shape, kind) for name, shape in shapes.items()} for _ in range(2)]
        self.graphs: dict[tuple[int, int], cuda.Graph | None] = {}
        self.latest, self._stream = 0, stream
        for buffers in self.buffers:
            for buffer in buffers.values():
                stream.upload(buffer)
        stream.wait()

    def swap(self) -> None:
        """Take the other buffers as the states: what the latest run wrote, or again what it read."""
        self.latest = 1 - self.latest

    def clear(self) -> None:
        for buffer in self.buffers[self.latest].values():
            buffer.host.fill(0)
            self._stream.upload(buffer)
        self._stream.wait()

    def read(self) -> dict[str, np.ndarray]:
        for buffer in self.buffers[self.latest].values():
            self._stream.download(buffer)
        self._stream.wait()
        return {name: buffer.host.copy() for name, buffer in self.buffers[self.latest].items()}


class TensorRtEngine:
    """A plan on this machine's first GPU. It must be used in the thread that opened it.

    The constructor allocates all inputs and outputs, on the GPU and in pinned host memory, and captures the work of a
    frame, with its copies to and from the GPU, in a CUDA graph that every run launches. NVIDIA requires one run before
    the capture, in which TensorRT does its deferred initialisation.

    Attributes:
        graph: None if the work cannot be captured, because it allocates memory or waits for the GPU midway
            (data-dependent shapes, branches, plans of tensorrt_rtx 1.1); then every run enqueues it again. A network
            with states has one for each of their buffers, which the states keep.

    Args:
        weights: an ONNX graph of the same structure (`deploy.precision.measure`), whose weights replace the plan's.
        dla: the plan was compiled with layers on DLA 0.
    """

    def __init__(self, plan: Content, target: Target, weights: Content | None = None, dla: bool = False) -> None:
        trt = import_compiler(target)
        self._stream = cuda.Stream()
        self._log = make_logger(trt)
        self._runtime = trt.Runtime(self._log)
        if dla:
            self._runtime.DLA_core = 0
        self._engine = self._runtime.deserialize_cuda_engine(plan.data)
        if self._engine is None:
            raise InputError(f"{plan.path}: {trt.__name__} {trt.__version__} refuses it: {' '.join(self._log.errors)}")
        if weights is not None:
            self._refit(trt, plan, weights)
        self._context = self._engine.create_execution_context()
        self._inputs: dict[str, cuda.Buffer] = {}
        self._outputs: dict[str, cuda.Buffer] = {}
        self._states: dict[str, tuple[int, ...]] = {}
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        states = states_of(names)
        for name in names:
            dtype = np.dtype(trt.nptype(self._engine.get_tensor_dtype(name)))
            shape = tuple(self._engine.get_tensor_shape(name))
            is_input = self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            if is_input and -1 in shape:  # plans by trtexec keep the dimension dynamic; the profile has its size
                shape = tuple(self._engine.get_tensor_profile_shape(name, 0)[2])
                self._context.set_input_shape(name, shape)
            if name.removeprefix(NEXT) in states:  # in buffers of `TensorRtState`
                self._states[name.removeprefix(NEXT)] = shape
                continue
            buffer = cuda.Buffer(shape, dtype)
            self._context.set_tensor_address(name, buffer.address)
            (self._inputs if is_input else self._outputs)[name] = buffer
        self.graph = self._prepare(self.new_state())

    def new_state(self) -> TensorRtState | None:
        return TensorRtState(self._states, self._stream) if self._states else None

    def run(self, inputs: Mapping[str, np.ndarray], state: EngineState | None = None) -> dict[str, np.ndarray]:
        """Outputs by name, for inputs by name with the shapes and types of the manifest; see `deploy.engine.Engine`."""
        for name, buffer in self._inputs.items():
            expected, array = buffer.host, inputs.get(name)
            if array is None or (array.shape, array.dtype) != (expected.shape, expected.dtype):
                found = "is missing" if array is None else f"is {array.dtype} {array.shape}"
                raise InputError(
                    f"TensorRT cannot run the network: {name} {found}, the plan takes {expected.dtype} {expected.shape}"
                )
            expected[...] = array
        if self._states and state is None:
            raise InputError("TensorRT cannot run the network: it takes a state")
        graph = self.graph
        if isinstance(state, TensorRtState):
            graph = self._graph_of(state)
        if graph is None:
            self._enqueue()
        else:
            self._stream.launch(graph)
        self._stream.wait()
        if isinstance(state, TensorRtState):
            state.swap()
        return {name: buffer.host.copy() for name, buffer in self._outputs.items()}

    def _graph_of(self, state: TensorRtState) -> cuda.Graph | None:
        """The captured work that reads the latest states; binds their buffers where there is none."""
        key = id(self), state.latest
        if state.graphs.get(key) is None:
            self._bind(state)
        if key not in state.graphs:
            state.graphs[key] = None if self.graph is None else self._stream.capture(self._enqueue)
        return state.graphs[key]

    def _bind(self, state: TensorRtState) -> None:
        for name, buffer in state.buffers[state.latest].items():
            self._context.set_tensor_address(name, buffer.address)
            self._context.set_tensor_address(NEXT + name, state.buffers[1 - state.latest][name].address)

    def _prepare(self, state: TensorRtState | None) -> cuda.Graph | None:
        if state is not None:
            self._bind(state)
        self._enqueue()
        self._stream.wait()
        # tensorrt_rtx can tell whether its work can be captured; with tensorrt the capture itself fails if not.
        capturable = getattr(self._context, "is_stream_capturable", lambda handle: True)
        return self._stream.capture(self._enqueue) if capturable(self._stream.handle) else None

    def _enqueue(self) -> None:
        for buffer in self._inputs.values():
            self._stream.upload(buffer)
        if not self._context.execute_async_v3(self._stream.handle):
            raise RuntimeError("TensorRT could not run the plan")
        for buffer in self._outputs.values():
            self._stream.download(buffer)

    def _refit(self, trt: Any, plan: Content, weights: Content) -> None:
        """Replace the engine's weights by those of the same names in an ONNX graph, before its first run."""
        if not self._engine.refittable:
            raise InputError(
                f"{plan.path}: was not compiled to be refitted, so it cannot take the weights of {weights.path}"
            )
        refitter = trt.Refitter(self._engine, self._log)
        parser = trt.OnnxParserRefitter(refitter, self._log)
        done = parser.refit_from_bytes(weights.data)
        missing = refitter.get_missing_weights()
        if not done or missing or not refitter.refit_cuda_engine():
            reasons = [parser.get_error(i).desc() for i in range(parser.num_errors)]
            lacking = f"it lacks {', '.join(missing[:3])}" if missing else ""
            reason = " ".join(" ".join([lacking, *reasons, *self._log.errors]).split()) or "no reason given"
            raise InputError(
                f"{plan.path}: {trt.__name__} {trt.__version__} cannot give it the weights of {weights.path}: {reason}"
            )
