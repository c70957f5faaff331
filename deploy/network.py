"""Make the graphs of one network, which serves some routes, from a trained model, and compare them with torch.

The graphs use only the ONNX standard domain and static shapes, so that ONNX Runtime and TensorRT accept them. Only the
number of pillars is dynamic: ONNX Runtime computes those of the frame, a TensorRT plan always the largest number.
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
from deploy.golden import GoldenFrame, require_agreement, require_golden
from deploy.manifest import NetworkFacts, TensorInfo
from deploy.onnx_export import OPSET, run, to_onnx
from deploy.precision.convert import convert
from deploy.precision.measure import make_golden_frames, structure_sha256
from deploy.precision.quantise import Ranges
from deploy.route import BankedModule, parse_conditions, route_name, steering_inputs
from deploy.tolerances import Precision
from perception.model import PerceptionModel
from perception.modules.routing.fixed import SteeredRouter
from perception.tasks import TASKS
from perception.tasks.task import Task

UNITS = {
    "pillar_points": "x y z m, intensity 0-255, dt s; reference frame, grouped by pillar, zeros as padding",
    "pillar_counts": "points in the pillar; 0: padding",
    "pillar_cells": "row * columns + column on the pillar grid; rows * columns: padding",
    "points": "x y z m, intensity 0-255, dt s; the keyframe's first points in their order, zeros as padding",
    "point_cells": "row * columns + column on the pillar grid; rows * columns: outside, and padding",
    "route": "weight of each module, in the order of `banked`; 1: it runs",
    "images": "RGB 0-255, in the order of `rig.cameras`; zeros where missing",
    "image_from_reference": "pixels of the network's picture per m; zeros where missing",
}


@dataclass(frozen=True)
class Network:
    """One network of a bundle."""

    graphs: dict[str, bytes]  # ONNX files by name
    golden: tuple[GoldenFrame, ...]
    modules: tuple[str, ...]  # in the network: folded, inline or banked
    ranges: Ranges  # INT8: measured ranges of the activations
    facts: NetworkFacts


def make_network(
    trained: PerceptionModel,
    routes: Sequence[Sequence[str]],
    golden: Mapping[str, dict[str, np.ndarray]],
    precision: Precision,
    recorded: Collection[Mapping[str, np.ndarray]],
) -> Network:
    """Fold the modules that all routes use, switch the others by an input `route`, export, convert and compare.

    Args:
        golden: inputs of the golden frames by name; all routes are compared on the first.
        recorded: inputs of frames to calibrate INT8 on.

    Raises:
        InputError: the graph has an operator outside the ONNX standard, or ONNX Runtime differs from torch.
    """
    taxonomy = trained.config.taxonomy
    known = [parse_conditions(route, taxonomy) for route in routes]
    first = next(iter(golden.values()))
    expected = [run(trained, first, each)[0] for each in known]  # this run also tells prompts the size of their input
    model = trained.deployed(*known)
    banked, conditional = _banked(trained, model)
    values = taxonomy.condition_values if conditional else ()
    steered = [first | steering_inputs(each, first, banked, values) for each in known]
    more = {name: array for name, array in steered[0].items() if name not in first}
    if banked:  # different weights, so that the golden frames depend on every module
        more["route"] = np.linspace(0.5, 1, len(banked), dtype=np.float32)[None]
    inputs = {name: frame | more for name, frame in golden.items()}
    computed = {name: run(model, frame) for name, frame in inputs.items()}
    outputs, flops = computed[next(iter(golden))]
    graph = to_onnx(model, first | more, list(outputs))
    frames = {name: (frame, computed[name][0]) for name, frame in inputs.items()}
    proofs, allowed = make_golden_frames({ONNX: graph}, "fp32", frames, trained.tasks)
    engine = OnnxRuntimeEngine(_bytes(graph))
    require_golden(proofs, engine.run, "ONNX Runtime", allowed)
    for on_route, alone, route in zip(steered, expected, routes, strict=True):
        require_agreement(alone, run(model, on_route)[0], f"the folded network on route {route_name(route)}", allowed)
        require_agreement(alone, engine.run(on_route), f"ONNX Runtime on route {route_name(route)}", allowed)
    drives = [{**each, **steering_inputs(route, each, banked, values)} for each in recorded for route in known]
    converted, tolerances = convert(graph, precision, drives, trained.tasks), allowed
    if precision != "fp32":
        proofs, tolerances = make_golden_frames(converted.graphs, precision, frames, trained.tasks)
    facts = NetworkFacts(
        opset=OPSET,
        precision=precision,
        blocks=converted.blocks,
        tolerances=tolerances,
        inputs=_describe(first | more, UNITS | {"conditions": f"1 if it is known to hold: {' '.join(values)}"}),
        outputs=_describe(outputs, _units(trained.tasks)),
        routes=tuple(route_name(route) for route in routes),
        folded=model.bank.folded,
        inline=tuple(name for name in model.bank.modules if name not in {each.name for each in banked}),
        banked=banked,
        parameters=sum(p.numel() for p in model.parameters()),
        flops=flops,
        operators=dict(sorted(Counter(node.op_type for node in converted.graphs[ONNX].graph.node).items())),
        structure_sha256=structure_sha256(converted.graphs[ONNX]),
    )
    graphs, names = {name: _bytes(each) for name, each in converted.graphs.items()}, [each.name for each in banked]
    return Network(graphs, proofs, (*facts.folded, *facts.inline, *names), converted.ranges, facts)


def _banked(trained: PerceptionModel, model: PerceptionModel) -> tuple[tuple[BankedModule, ...], bool]:
    """The modules that the input `route` switches, with the facts they require, and whether conditions are an input."""
    if not isinstance(model.router, SteeredRouter):
        return (), False
    required = {name: sorted({*trained.bank.modules[name].when} - set(TASKS)) for name in model.router.steered}
    return tuple(
        BankedModule(name=name, asks=tuple(facts)) for name, facts in required.items()
    ), model.router.conditional


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
