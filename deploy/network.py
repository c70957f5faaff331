"""A trained model becomes the graphs of one network that serves some routes, proved against torch.

The graphs keep to the ONNX standard domain and static shapes, so that ONNX Runtime and TensorRT take them as they are.
Only the number of pillars is open: ONNX Runtime computes those of the frame, a plan of TensorRT as many as can be.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from deploy.bundle import ONNX
from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.golden import require_agreement
from deploy.manifest import Precision, TensorInfo
from deploy.precision.lower import OUTLIERS, lower, tolerance
from deploy.precision.quantise import Ranges
from deploy.route import Banked, named, parse_conditions, steering
from deploy.trace import OPSET, run, to_onnx
from perception.model import PerceptionModel
from perception.modules.routing.steered import SteeredRouter
from perception.modules.spec import TASKS

TOLERANCE = 1e-4  # FP32, between engines

UNITS = {
    "pillar_points": "x y z m, intensity 0-255, dt s; reference frame, grouped by pillar, zeros as padding",
    "pillar_counts": "points in the pillar; 0: padding",
    "pillar_cells": "row * columns + column on the pillar grid; rows * columns: padding",
    "route": "weight of each module, in the order of `banked`; 1: it runs",
    "conditions": "1 for each that is known to hold, in the order clear rain fog day night boston singapore",
    "images": "RGB 0-255, in the order of `cameras`; zeros where missing",
    "image_from_reference": "pixels of the network's picture per m; zeros where missing",
    "boxes": "x y z w l h m, sin and cos of yaw times any factor, vx vy m/s; reference frame",
    "scores": "probability, descending; where classes are in groups, in each",
    "labels": "index in `classes`",
    "attributes": "index in `attributes`",
    "recognised": "probability of each, in the order clear rain fog, day night, boston singapore; each kind sums to 1",
    "map": "probability, in the order of `map_classes`, on `map_grid`",
}


@dataclass(frozen=True)
class Network:
    """What a bundle holds of one network."""

    graphs: dict[str, bytes]  # by name of the file
    golden: tuple[dict[str, np.ndarray], dict[str, np.ndarray]]  # inputs and outputs
    modules: tuple[str, ...]  # that it was made with
    ranges: Ranges  # of the activations, as measured for INT8
    described: dict[str, Any]  # in the fields of the manifest


def make_network(
    trained: PerceptionModel,
    routes: Sequence[Sequence[str]],
    golden: dict[str, np.ndarray],
    precision: Precision,
    recorded: Collection[Mapping[str, np.ndarray]],
) -> Network:
    """Fold what is the same on all routes, leave a `route` input to switch the rest, export, lower and compare.

    Args:
        golden: inputs of the golden frame.
        recorded: inputs of frames to calibrate INT8 on.

    Raises:
        InputError: an operator outside the ONNX standard, or ONNX Runtime differs from torch.
    """
    known = [parse_conditions(route) for route in routes]
    expected = [run(trained, golden, each)[0] for each in known]  # it also shows prompts the size of their input
    model = trained.deployed(*known)
    banked, conditional = _banked(trained, model)
    steered = [golden | steering(each, golden, banked, conditional) for each in known]
    inputs = steered[0]
    if banked:  # weights of which no two are the same, so that the golden frame sees every module
        inputs = inputs | {"route": np.linspace(0.5, 1, len(banked), dtype=np.float32)[None]}
    outputs, flops = run(model, inputs)
    graph = to_onnx(model, inputs, list(outputs))
    engine = OnnxRuntimeEngine(_bytes(graph))
    require_agreement(outputs, engine.run(inputs), "ONNX Runtime", TOLERANCE)
    for on_route, alone, route in zip(steered, expected, routes, strict=True):
        require_agreement(alone, run(model, on_route)[0], f"the folded network on route {named(route)}", TOLERANCE)
        require_agreement(alone, engine.run(on_route), f"ONNX Runtime on route {named(route)}", TOLERANCE)
    frames = [{**each, **steering(route, each, banked, conditional)} for each in recorded for route in known]
    lowered = lower(graph, precision, frames)
    graphs = {name: _bytes(each) for name, each in lowered.graphs.items()}
    found = [OnnxRuntimeEngine(content).run(inputs) for content in graphs.values()]
    allowed, of_recognised = (TOLERANCE, None) if precision == "fp32" else tolerance(outputs, found, precision)
    inline = tuple(name for name in model.bank.modules if name not in {each.name for each in banked})
    return Network(
        graphs=graphs,
        golden=(inputs, outputs),
        ranges=lowered.ranges,
        modules=(*model.bank.folded, *inline, *(each.name for each in banked)),
        described={
            "opset": OPSET,
            "precision": precision,
            "blocks": lowered.blocks,
            "tolerance": allowed,
            "recognised_tolerance": of_recognised,
            "outliers": OUTLIERS[precision],
            "inputs": _describe(inputs),
            "outputs": _describe(outputs),
            "routes": tuple(named(route) for route in routes),
            "folded": model.bank.folded,
            "inline": inline,
            "banked": banked,
            "parameters": sum(p.numel() for p in model.parameters()),
            "flops": flops,
            "operators": dict(sorted(Counter(node.op_type for node in lowered.graphs[ONNX].graph.node).items())),
        },
    )


def _banked(trained: PerceptionModel, model: PerceptionModel) -> tuple[tuple[Banked, ...], bool]:
    """The modules that the graph's `route` input steers, with what they ask for, and whether it takes conditions."""
    if not isinstance(model.router, SteeredRouter):
        return (), False
    asks = {name: sorted({*trained.bank.modules[name].when} - set(TASKS)) for name in model.router.steered}
    return tuple(Banked(name=name, asks=tuple(facts)) for name, facts in asks.items()), model.router.conditional


def _bytes(graph: onnx.ModelProto) -> bytes:
    content: bytes = graph.SerializeToString(deterministic=True)
    return content


def _describe(arrays: dict[str, np.ndarray]) -> tuple[TensorInfo, ...]:
    return tuple(
        TensorInfo(name=name, shape=array.shape, dtype=array.dtype.name, unit=UNITS[name])
        for name, array in arrays.items()
    )
