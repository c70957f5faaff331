"""TensorRT: compiles a graph for a GPU and runs it there.

Written once against the API that `tensorrt` (10 and later; Jetson, DRIVE) and `tensorrt_rtx` (RTX GPUs) share.
Compiling with `tensorrt_rtx` needs no GPU and is tested on every change. What these tests cannot run, because it needs
the device: compiling with `tensorrt` itself; placing layers on a DLA (the calls are made on `tensorrt_rtx`'s
configuration, which takes them, but no DLA is there to compile for); and running a plan. `TensorRtEngine` follows
NVIDIA's documentation: the golden frame that `Runtime` runs first tells whether it computes the network.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deploy.engines import cuda
from deploy.targets import Target
from perception.errors import InputError


@dataclass(frozen=True)
class Plan:
    """A compiled network."""

    content: bytes
    layers: int  # that the parser made of the graph
    compiler: str  # with its version


def compiles_here(target: Target) -> bool:
    """Whether this is a machine to compile for the target on. TensorRT needs to be here, and the target's own GPU."""
    if target.compiler != "tensorrt":
        return True
    if importlib.util.find_spec("tensorrt") is None:
        return False
    try:
        return cuda.compute_capability() in target.compute_capabilities
    except InputError:  # no GPU
        return False


def build_engine(onnx: bytes, target: Target, dla: bool = False) -> Plan:
    """Compile an ONNX graph for a target, on a machine where that is possible (`compiles_here`).

    Args:
        dla: place on the first DLA what it can run, and the rest on the GPU.

    Raises:
        InputError: the compiler is not installed or of another version, there is no DLA, or the compiler refuses the
            graph: then the message names the node, its operator and the reason.
    """
    trt = _compiler(target)
    if trt.__version__ not in (versions := target.versions_for(dla)):
        purpose = " with a DLA" if dla else ""
        raise InputError(f"{target.name}: needs {target.compiler} {versions}{purpose}, but {trt.__version__} is here")
    log = _listen(trt)
    builder = trt.Builder(log)
    # Strongly typed: the types in the graph are the precision, and nothing is lowered behind our back.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(onnx):
        raise InputError(f"{target.name}: {trt.__name__} {trt.__version__} refuses {_refusal(parser, log)}")
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # its 10-bit mantissa is not FP32
    if target.compiler == "tensorrt_rtx":
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{target.compute_capabilities[0]}"), 0)
    if dla:
        if not builder.num_DLA_cores:
            raise InputError(f"{target.name}: this module has no DLA; build without --dla")
        place_on_dla(trt, config)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise InputError(
            f"{target.name}: {trt.__name__} {trt.__version__} cannot compile the graph: {' '.join(log.errors)}"
        )
    return Plan(bytes(plan), network.num_layers, f"{installed(target)}{' with DLA 0' if dla else ''}")


def place_on_dla(trt: Any, config: Any) -> None:
    """Set a builder's configuration to place every layer on DLA 0 that it can run, and the others on the GPU."""
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = 0
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)


def installed(target: Target) -> str:
    """The target's compiler on this machine, with its version; InputError where it is not installed."""
    trt = _compiler(target)
    return f"{trt.__name__} {trt.__version__}"


def _compiler(target: Target) -> Any:
    try:
        return importlib.import_module(target.compiler)
    except ImportError:
        where = "" if target.compiler == "tensorrt_rtx" else f" on the {target.device} itself"
        raise InputError(
            f"{target.name}: needs {target.compiler}{where}, which is not installed here: {target.install}"
        ) from None


def _listen(trt: Any) -> Any:
    """A logger that remembers the errors and the node that was read last."""

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


def _refusal(parser: Any, log: Any) -> str:
    """'node NAME [OPERATOR]: REASON' of the parser's first error."""
    error = parser.get_error(0)
    # Refusals from inside an operator's import carry no node; then it is the one that was read last.
    node = f"{error.node_name()} [{error.node_operator()}]" if error.node() >= 0 else log.node
    reason = error.desc().removeprefix(f"Invalid Node - {error.node_name()}").strip().splitlines()[0]
    # Without a GPU every API error drags a note about the CUDA driver behind it.
    reason = re.sub(r"\s*\[checkMacros.*", "", reason)
    code = str(error.code()).split(".")[-1].split(":")[0].lower().replace("_", " ")
    return f"{f'node {node}' if node else 'the file'}: {reason} ({code}, {error.func()})"


class TensorRtEngine:
    """A plan on this machine's GPU. Inputs and outputs are copied to and from the host at every run.

    Raises:
        InputError: no GPU, no TensorRT, or a plan for another version or GPU.
    """

    def __init__(self, plan: Path, target: Target) -> None:
        trt = _compiler(target)
        self._stream = cuda.Stream()
        log = _listen(trt)
        self._runtime = trt.Runtime(log)
        self._engine = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        if self._engine is None:
            raise InputError(f"{plan}: {trt.__name__} {trt.__version__} refuses it: {' '.join(log.errors)}")
        self._context = self._engine.create_execution_context()
        self._arrays: dict[str, np.ndarray] = {}  # host side of every input and output
        self._buffers: dict[str, cuda.Buffer] = {}
        self._outputs = []
        for i in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(i)
            dtype = trt.nptype(self._engine.get_tensor_dtype(name))
            self._arrays[name] = np.zeros(tuple(self._engine.get_tensor_shape(name)), dtype)
            self._buffers[name] = cuda.Buffer(self._arrays[name].nbytes)
            self._context.set_tensor_address(name, self._buffers[name].address)
            if self._engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT:
                self._outputs.append(name)

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name, for inputs by name with the shapes and types of the manifest."""
        for name, array in inputs.items():
            np.copyto(self._arrays[name], array, casting="no")
            self._stream.upload(self._buffers[name], self._arrays[name])
        if not self._context.execute_async_v3(self._stream.handle):
            raise RuntimeError("TensorRT could not run the plan")
        for name in self._outputs:
            self._stream.download(self._arrays[name], self._buffers[name])
        self._stream.wait()
        return {name: self._arrays[name].copy() for name in self._outputs}
