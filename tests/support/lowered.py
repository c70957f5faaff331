"""ONNX graphs: networks at every precision, each traced once, and models made by hand."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from exported import QUIET, checkpoint_of
from networks import config, model
from once import once
from onnx import TensorProto, helper, numpy_helper
from tiny import write_tiny
from vocabulary import RIG

from deploy.bundle import Bundle
from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.export import export
from deploy.golden import synthetic_frame
from deploy.onnx_export import to_onnx
from deploy.precision.calibrate import Drives, ranges
from deploy.precision.convert import convert
from deploy.precision.quantise import CPU, TENSORRT, Ranges, activations, quantisable, quantise
from deploy.tolerances import Precision
from perception.config import parse_config
from perception.frame import Conditions
from perception.model import PerceptionModel
from perception.sensors.inputs import InputSpec, prepare

OUTPUTS = (*(f"detection/{name}" for name in ("boxes", "scores", "labels", "attributes")), "map/probabilities")
ROUTES = (Conditions(), Conditions(weather="rain"), Conditions(light="night"))
MODULES = [
    {"name": "rain", "kind": "low_rank", "slots": ["trunk.*", "heads.*"], "rank": 2, "when": ["rain"]},
    {"name": "night", "kind": "batch_norm", "slots": ["camera.*"], "when": ["night"]},
]
Arrays = dict[str, np.ndarray]


@cache
def network(kind: str) -> PerceptionModel:
    """Random weights, `folded`: no modules; `banked`: those of `MODULES`, switched by an input."""
    if kind == "folded":
        return model().deployed()
    torch.manual_seed(0)
    modular = PerceptionModel(parse_config(config().model_dump(mode="json") | {"modules": MODULES}, "banked"))
    modular.load_state_dict(model().state_dict(), strict=False)
    with torch.no_grad():
        for name, parameter in modular.named_parameters():
            if "computations" in name:
                parameter += 0.05 * torch.randn_like(parameter)
    return modular.deployed(*ROUTES)


@cache
def _frame(seed: int) -> Arrays:
    return prepare(synthetic_frame("ego", RIG, seed), InputSpec.of(config()))


def frame(seed: int, kind: str = "folded") -> Arrays:
    """Inputs of the network."""
    return _frame(seed) | ({"route": np.array([[0.5, 1]], np.float32)} if kind == "banked" else {})


@cache
def single(kind: str) -> onnx.ModelProto:
    """The graph in FP32; all processes of the tests share the trace."""

    def trace(out: Path) -> None:
        out.mkdir()
        onnx.save(to_onnx(network(kind), frame(0, kind), OUTPUTS), out / "model.onnx")

    return onnx.load(once(f"traced-{kind}", trace) / "model.onnx")


@cache
def measure_ranges(kind: str) -> Ranges:
    return ranges(single(kind), activations(single(kind).graph), [frame(seed, kind) for seed in (1, 2)])


@cache
def graph(precision: str, kind: str) -> onnx.ModelProto:
    """fp32, fp16; or all of INT8 in the layout `int8` of TensorRT or `int8.cpu`."""
    if precision == "fp16":
        return convert(single(kind), "fp16", (), network(kind).tasks).graphs["model.onnx"]
    layout = {"int8": TENSORRT, "int8.cpu": CPU}.get(precision)
    whole = single(kind)
    return quantise(whole, [*quantisable(whole.graph)], measure_ranges(kind), layout) if layout else whole


def run(graph: onnx.ModelProto, inputs: Mapping[str, np.ndarray]) -> Arrays:
    return OnnxRuntimeEngine(graph.SerializeToString()).run(inputs)


def bundles_of(
    checkpoint: Path,
    out: Path,
    precisions: Sequence[Precision],
    drives: Drives,
    routes: Sequence[Sequence[str]] = ((),),
) -> dict[Precision, Bundle]:
    """A bundle of the checkpoint in the folder `out` for each precision, all of one trace.

    `export` makes FP16 and INT8 of the graph in FP32, and compares that with torch each time.

    Args:
        drives: to calibrate INT8 on.
    """
    traced: list[onnx.ModelProto] = []

    def trace(*given: object) -> onnx.ModelProto:
        traced[:] = traced or [to_onnx(*given)]
        return deepcopy(traced[0])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deploy.export.to_onnx", trace)
        given = {each: {"precision": each, "calibration": drives if each == "int8" else None} for each in precisions}
        return {each: export(checkpoint, out / each, routes, QUIET, **options) for each, options in given.items()}


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
