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
from deploy.golden import GoldenFrame, require_agreement
from deploy.manifest import NetworkFacts, TensorInfo
from deploy.onnx_export import OPSET, run, to_onnx
from deploy.precision.convert import lower
from deploy.precision.measure import golden_of
from deploy.precision.quantise import Ranges
from deploy.route import Banked, named, parse_conditions, steering
from deploy.structure import structure_sha256
from deploy.tolerances import Precision, exact
from perception.model import PerceptionModel
from perception.modules.routing.input_weighted import SteeredRouter
from perception.tasks import TASKS
from perception.tasks.task import Task

UNITS = {
    "pillar_points": "x y z m, intensity 0-255, dt s; reference frame, grouped by pillar, zeros as padding",
    "pillar_counts": "points in the pillar; 0: padding",
    "pillar_cells": "row * columns + column on the pillar grid; rows * columns: padding",
    "route": "weight of each module, in the order of `banked`; 1: it runs",
    "conditions": "1 for each that is known to hold, in the order clear rain fog day night boston singapore",
    "images": "RGB 0-255, in the order of `cameras`; zeros where missing",
    "image_from_reference": "pixels of the network's picture per m; zeros where missing",
}


@dataclass(frozen=True)
class Network:
    """What a bundle holds of one network."""

    graphs: dict[str, bytes]  # by name of the file
    golden: tuple[GoldenFrame, ...]
    modules: tuple[str, ...]  # that it was made with
    ranges: Ranges  # of the activations, as measured for INT8
    facts: NetworkFacts


def make_network(
    trained: PerceptionModel,
    routes: Sequence[Sequence[str]],
    golden: Mapping[str, dict[str, np.ndarray]],
    precision: Precision,
    recorded: Collection[Mapping[str, np.ndarray]],
) -> Network:
    """Fold what is the same on all routes, leave a `route` input to switch the rest, export, lower and compare.

    Args:
        golden: inputs of the golden frames by name; all routes are compared on the first.
        recorded: inputs of frames to calibrate INT8 on.

    Raises:
        InputError: an operator outside the ONNX standard, or ONNX Runtime differs from torch.
    """
    known = [parse_conditions(route) for route in routes]
    first = next(iter(golden.values()))
    expected = [run(trained, first, each)[0] for each in known]  # it also shows prompts the size of their input
    model = trained.deployed(*known)
    banked, conditional = _banked(trained, model)
    steered = [first | steering(each, first, banked, conditional) for each in known]
    more = {name: array for name, array in steered[0].items() if name not in first}
    if banked:  # weights of which no two are the same, so that the golden frames see every module
        more["route"] = np.linspace(0.5, 1, len(banked), dtype=np.float32)[None]
    inputs = {name: frame | more for name, frame in golden.items()}
    computed = {name: run(model, frame) for name, frame in inputs.items()}
    outputs, flops = computed[next(iter(golden))]
    graph = to_onnx(model, first | more, list(outputs))
    engine, allowed = OnnxRuntimeEngine(_bytes(graph)), exact(trained.tasks)
    for name, frame in inputs.items():
        require_agreement(computed[name][0], engine.run(frame), f"ONNX Runtime, golden frame {name}:", allowed)
    for on_route, alone, route in zip(steered, expected, routes, strict=True):
        require_agreement(alone, run(model, on_route)[0], f"the folded network on route {named(route)}", allowed)
        require_agreement(alone, engine.run(on_route), f"ONNX Runtime on route {named(route)}", allowed)
    frames = [{**each, **steering(route, each, banked, conditional)} for each in recorded for route in known]
    lowered = lower(graph, precision, frames, trained.tasks)
    proofs, tolerances = golden_of(
        lowered.graphs, precision, {name: (frame, computed[name][0]) for name, frame in inputs.items()}, trained.tasks
    )
    facts = NetworkFacts(
        opset=OPSET,
        precision=precision,
        blocks=lowered.blocks,
        tolerances=tolerances,
        inputs=_describe(first | more, UNITS),
        outputs=_describe(outputs, _units(trained.tasks)),
        routes=tuple(named(route) for route in routes),
        folded=model.bank.folded,
        inline=tuple(name for name in model.bank.modules if name not in {each.name for each in banked}),
        banked=banked,
        parameters=sum(p.numel() for p in model.parameters()),
        flops=flops,
        operators=dict(sorted(Counter(node.op_type for node in lowered.graphs[ONNX].graph.node).items())),
        structure_sha256=structure_sha256(lowered.graphs[ONNX]),
    )
    graphs = {name: _bytes(each) for name, each in lowered.graphs.items()}
    return Network(
        graphs, proofs, (*facts.folded, *facts.inline, *(each.name for each in banked)), lowered.ranges, facts
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


def _units(tasks: Mapping[str, Task[Any]]) -> dict[str, str]:
    return {f"{name}/{output.name}": output.unit for name, task in tasks.items() for output in task.outputs}


def _describe(arrays: Mapping[str, np.ndarray], units: Mapping[str, str]) -> tuple[TensorInfo, ...]:
    return tuple(
        TensorInfo(name=name, shape=array.shape, dtype=array.dtype.name, unit=units[name])
        for name, array in arrays.items()
    )
