"""Compile an ONNX graph to a TensorRT plan.

The code uses the API that `tensorrt` (10 and later; Jetson, DRIVE) and `tensorrt_rtx` (RTX GPUs) share. Compiling with
`tensorrt_rtx` needs no GPU and is tested on every change. Three things need the device and have never run: compiling
with `tensorrt`; placing layers on a DLA (the calls are tested on the builder configuration of `tensorrt_rtx`); and
compiling a refittable plan, for which `tensorrt_rtx` needs a GPU too (1.4 and 1.7 fail without the driver if the graph
has weights: "graph_jit.cpp: CHECK(status == CUDA_SUCCESS)").
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deploy.engines import cuda
from deploy.targets import Target
from perception.errors import InputError


@dataclass(frozen=True)
class CompiledPlan:
    """A compiled network."""

    content: bytes
    layers: int  # in the parsed network
    compiler: str  # name and version


def compiles_here(target: Target) -> bool:
    """Whether this machine can compile for the target; `tensorrt` compiles on the target's own GPU only.

    Raises:
        InputError: TensorRT is installed, but cuda-bindings is not.
    """
    if target.compiler != "tensorrt":
        return True
    if importlib.util.find_spec("tensorrt") is None:
        return False
    try:
        return cuda.compute_capability() in target.compute_capabilities
    except cuda.NoGpuError:
        return False


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
        refittable: compile a plan whose weights can be replaced later (`deploy.precision.measure`), without the
            optimisations that depend on their values. This needs a GPU.
        inputs: shape by name, at least for inputs with a dynamic dimension; the plan takes only this size.

    Raises:
        InputError: the compiler is missing or has another version, the DLA or the GPU that is needed is missing, or
            the compiler rejects the graph; the message then names the node, its operator and the reason.
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
    return CompiledPlan(bytes(plan), network.num_layers, f"{compiler_version(target)}{' with DLA 0' if dla else ''}")


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
