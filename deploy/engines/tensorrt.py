"""TensorRT's compiler: makes a plan for a GPU from a graph.

Written once against the API that `tensorrt` (10 and later; Jetson, DRIVE) and `tensorrt_rtx` (RTX GPUs) share.
Compiling with `tensorrt_rtx` needs no GPU and is tested on every change. Three things need the device and have never
run: compiling with `tensorrt` itself; placing layers on a DLA (the calls are tested on `tensorrt_rtx`'s configuration,
which accepts them, but there is no DLA to compile for); and compiling a plan to be refitted, for which `tensorrt_rtx`
needs a GPU as well (1.4 and 1.7 fail without the driver as soon as the graph has weights: "graph_jit.cpp:
CHECK(status == CUDA_SUCCESS)").
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
class Plan:
    """A compiled network."""

    content: bytes
    layers: int  # that the parser made of the graph
    compiler: str  # with its version


def compiles_here(target: Target) -> bool:
    """Whether this machine can compile for the target; `tensorrt` needs the target's own GPU for it.

    Raises:
        InputError: TensorRT is installed, but not the bindings that find the GPU.
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
) -> Plan:
    """Compile an ONNX graph for a target, on a machine where that is possible (`compiles_here`).

    Args:
        dla: place on the first DLA what it can run, and the rest on the GPU.
        refittable: compile a plan that can take other weights later (`deploy.structure`), without the optimisations
            that depend on their values. It cannot be compiled without a GPU.
        inputs: shapes by name, at least of inputs with a dynamic dimension: the plan takes this one size.

    Raises:
        InputError: the compiler is not installed or of another version, there is no DLA, no GPU for a plan to be
            refitted, or the compiler refuses the graph: then the message names the node, its operator and the reason.
    """
    trt = compiler(target)
    if refittable:
        _require_gpu(target)
    if trt.__version__ not in (versions := target.versions_for(dla)):
        purpose = " with a DLA" if dla else ""
        raise InputError(f"{target.name}: needs {target.compiler} {versions}{purpose}, but {trt.__version__} is here")
    log = listen(trt)
    builder = trt.Builder(log)
    # Strongly typed: the types in the graph are the precision, and nothing is lowered behind our back.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(onnx):
        raise InputError(f"{target.name}: {trt.__name__} {trt.__version__} refuses {_refusal(parser, log)}")
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
        # tensorrt_rtx from 1.2 on: no memory is taken as the plan runs, so that its work can be recorded.
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
    return Plan(bytes(plan), network.num_layers, f"{installed(target)}{' with DLA 0' if dla else ''}")


def _require_gpu(target: Target) -> None:
    try:
        cuda.compute_capability()
    except cuda.NoGpuError:
        raise InputError(
            f"{target.name}: what can be refitted compiles only where there is an NVIDIA GPU; run this there, or leave "
            "out --refit"
        ) from None


def place_on_dla(trt: Any, config: Any) -> None:
    """Set a builder's configuration to place every layer on DLA 0 that it can run, and the others on the GPU."""
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = 0
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)


def installed(target: Target) -> str:
    """The target's compiler on this machine, with its version; InputError where it is not installed."""
    trt = compiler(target)
    return f"{trt.__name__} {trt.__version__}"


def compiler(target: Target) -> Any:
    """The target's compiler, a module; InputError where it is not installed."""
    try:
        return importlib.import_module(target.compiler)
    except ImportError:
        where = "" if target.compiler == "tensorrt_rtx" else f" on the {target.device} itself"
        raise InputError(
            f"{target.name}: needs {target.compiler}{where}, which is not installed here: {target.install}"
        ) from None


def listen(trt: Any) -> Any:
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
