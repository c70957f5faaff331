"""ONNX graphs: networks at every precision, each traced once, and models made by hand."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from exported import bundles_of, checkpoint_of
from networks import config, model, tasks
from once import once
from onnx import TensorProto, helper, numpy_helper
from tiny import write_tiny
from vocabulary import RIG

from deploy.bundle import Bundle
from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.golden import synthetic_frame
from deploy.onnx_export import to_onnx
from deploy.precision.calibrate import Drives, ranges
from deploy.precision.convert import convert
from deploy.precision.quantise import CPU, TENSORRT, Ranges, activations, quantisable, quantise
from deploy.tolerances import Precision
from perception.config import parse_config
from perception.model import PerceptionModel
from perception.sensors.inputs import prepare

OUTPUTS = (*(f"detection/{name}" for name in ("boxes", "scores", "labels", "attributes")), "map/probabilities")
MODULES = [
    {"name": "rain", "kind": "low_rank", "slots": ["trunk.*", "heads.*"], "rank": 2, "when": ["rain"]},
    {"name": "night", "kind": "batch_norm", "slots": ["camera.*"], "when": ["night"]},
]
Arrays = dict[str, np.ndarray]


@cache
def network() -> PerceptionModel:
    """Random weights, without modules."""
    return model().deployed()


@cache
def _frame(seed: int) -> Arrays:
    return prepare(synthetic_frame("ego", RIG, seed), config().spec)


def frame(seed: int, kind: str = "folded") -> Arrays:
    """Inputs of the network."""
    return _frame(seed) | ({"route": np.array([[0.5, 1]], np.float32)} if kind == "banked" else {})


@cache
def single(kind: str) -> onnx.ModelProto:
    """The graph in FP32, `folded`: of `network`; `banked`: with `MODULES`, switched by an input.

    All processes of the tests share the trace.
    """
    if kind == "banked":
        return onnx.load(switched("fp32").onnx)

    def trace(out: Path) -> None:
        out.mkdir()
        onnx.save(to_onnx(network(), frame(0), OUTPUTS), out / "model.onnx")

    return onnx.load(once("traced", trace) / "model.onnx")


@cache
def measure_ranges(kind: str) -> Ranges:
    return ranges(single(kind), activations(single(kind).graph), [frame(seed, kind) for seed in (1, 2)])


@cache
def graph(precision: str, kind: str) -> onnx.ModelProto:
    """fp32, fp16; or all of INT8 in the layout `int8` of TensorRT or `int8.cpu`."""
    if precision == "fp16":
        return convert(single(kind), "fp16", (), tasks()).graphs["model.onnx"]
    layout = {"int8": TENSORRT, "int8.cpu": CPU}.get(precision)
    whole = single(kind)
    return quantise(whole, [*quantisable(whole.graph)], measure_ranges(kind), layout) if layout else whole


def run(graph: onnx.ModelProto, inputs: Mapping[str, np.ndarray]) -> Arrays:
    return OnnxRuntimeEngine(graph.SerializeToString()).run(inputs)


@cache
def switched_run() -> Path:
    """The network that `MODULES` are switched in."""
    return checkpoint_of(parse_config(config().model_dump(mode="json") | {"name": "switched", "modules": MODULES}, ""))


@cache
def switched(precision: Precision) -> Bundle:
    """With modules that an input switches; the drive that INT8 was calibrated on lies beside it."""

    def make(out: Path) -> None:
        write_tiny(out / "drives")
        routes, drives = [[], ["rain"], ["night"]], Drives(out / "drives", "v1.0-tiny")
        bundles_of(switched_run(), out, ("fp32", "fp16", "int8"), drives, routes)

    return Bundle.load(once("switched", make) / precision)


def change_weights(
    graph: onnx.ModelProto, changes: Mapping[str, Callable[[np.ndarray], np.ndarray]]
) -> onnx.ModelProto:
    """A copy with other weights, each by its name or, of a matrix, by a part of it."""
    copy = deepcopy(graph)
    for part, change in changes.items():
        tensor = next(t for t in copy.graph.initializer if t.name == part or (part in t.name and len(t.dims) > 1))
        values = change(numpy_helper.to_array(tensor).copy())
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), tensor.name))
    return copy


def damage_convolution(graph: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with the weights of one convolution in the trunk upside down."""
    return change_weights(graph, {"trunk.stages.1.1.conv.layer.weight": lambda weight: weight[::-1]})


Values = Mapping[str, Any]  # shape by name; of another type than float32: type and shape


def onnx_model(
    nodes: Sequence[onnx.NodeProto], inputs: Values, outputs: Values, weights: Mapping[str, np.ndarray] | None = None
) -> onnx.ModelProto:
    ends = [
        [helper.make_tensor_value_info(name, *(v if isinstance(v, tuple) else (TensorProto.FLOAT, v))) for name, v in i]
        for i in (inputs.items(), outputs.items())
    ]
    constants = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    graph = helper.make_graph(nodes, "by hand", *ends, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
