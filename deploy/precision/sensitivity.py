"""Which blocks of the network may be INT8: each is quantised alone, and the change of the outputs measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.manifest import Block, Precision
from deploy.precision.calibrate import Inputs
from deploy.precision.graph import places
from deploy.precision.quantise import TENSORRT, Ranges, quantisable, quantise

LARGEST_ERROR = 0.1  # of a block that becomes INT8


def blocks(graph: onnx.GraphProto) -> dict[str, list[str]]:
    """Outputs of the `quantisable` convolutions by block, such as trunk.stages.0.

    The exporter names weights by their place in the model, modules' included: the block is the first two parts of
    that, and the number of a list behind them.
    """
    found: dict[str, list[str]] = {}
    for output, node in quantisable(graph).items():
        parts = node.input[1].removeprefix("model.").split(".")
        name = ".".join(parts[:3] if parts[2:3] and parts[2].isdigit() else parts[:2])
        found.setdefault(name, []).append(output)
    return found


def sensitivity(model: onnx.ModelProto, ranges: Ranges, frames: Sequence[Inputs]) -> tuple[Block, ...]:
    """The error of each block on these frames, and what it says: INT8 up to `LARGEST_ERROR`."""
    watched = watch(model)
    expected = _run(watched, frames)
    table = []
    for name, layers in blocks(model.graph).items():
        off = error(expected, _run(quantise(watched, layers, ranges, TENSORRT), frames))
        precision: Precision = "int8" if off <= LARGEST_ERROR else "fp32"
        table.append(Block(name=name, layers=len(layers), error=off, precision=precision))
    return tuple(table)


def watch(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a graph that gives what its outputs are decoded from: probabilities and other maps of the heads."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    graph = watched.graph
    probabilities = {n.input[0]: n.output[0] for n in graph.node if n.op_type == "Sigmoid"}
    known = {v.name: v for v in (*onnx.shape_inference.infer_shapes(model).graph.value_info, *graph.output)}
    maps = sorted(probabilities.get(name, name) for name in places(model.graph).heads)
    del graph.output[:]
    graph.output.extend(known[name] for name in maps)
    return watched


Maps = list[dict[str, np.ndarray]]  # of each frame


def error(expected: Maps, actual: Maps) -> float:
    """The largest relative error of the maps, as root mean squares over all cells and frames."""
    return max(
        float(
            np.sqrt(
                sum(np.square(a[name] - b[name]).sum() for a, b in zip(expected, actual, strict=True))
                / sum(np.square(a[name]).sum() for a in expected)
            )
        )
        for name in expected[0]
    )


def _run(model: onnx.ModelProto, frames: Sequence[Mapping[str, np.ndarray]]) -> Maps:
    engine = OnnxRuntimeEngine(model.SerializeToString())
    return [engine.run(inputs) for inputs in frames]
