"""Which blocks of the network may be INT8: each is quantised alone, and the change of the outputs measured."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
import onnx

from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.manifest import Block
from deploy.precision.calibrate import Inputs
from deploy.precision.graph import places
from deploy.precision.quantise import TENSORRT, Layout, Ranges, quantisable, quantise
from deploy.tolerances import Precision

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


def sensitivity(
    model: onnx.ModelProto, ranges: Ranges, frames: Sequence[Inputs], early: Collection[str] = ()
) -> tuple[Block, ...]:
    """The error of each block on these frames, and its precision: INT8 up to an error of `LARGEST_ERROR`.

    Args:
        early: see `watch`.
    """
    watched, frames = _at_the_same_cells(model, frames, early)
    expected = run(watched, frames)
    table = []
    for name, layers in blocks(model.graph).items():
        off = error(expected, run(quantise(watched, layers, ranges, TENSORRT), frames))
        precision: Precision = "int8" if off <= LARGEST_ERROR else "fp32"
        table.append(Block(name=name, layers=len(layers), error=off, precision=precision))
    return tuple(table)


def together(
    model: onnx.ModelProto,
    layers: Collection[str],
    ranges: Ranges,
    frames: Sequence[Inputs],
    layout: Layout,
    early: Collection[str] = (),
) -> float:
    """The error of all these layers in INT8 at once."""
    watched, frames = _at_the_same_cells(model, frames, early)
    return error(run(watched, frames), run(quantise(watched, layers, ranges, layout), frames))


def _at_the_same_cells(
    model: onnx.ModelProto, frames: Sequence[Inputs], early: Collection[str]
) -> tuple[onnx.ModelProto, Sequence[Inputs]]:
    """The graph to measure errors on (`watch`), and the frames with the cells of FP32's peaks.

    Boxes may be regressed at the peaks alone: at those of FP32, so that numbers of the same cells are compared.
    """
    cells = [node.output[1] for node in model.graph.node if node.op_type == "TopK"]
    found = run(_giving(model, cells), frames)
    given = [{f"{name}.given": cell for name, cell in each.items()} for each in found]
    return watch(model, early), [{**frame, **each} for frame, each in zip(frames, given, strict=True)]


def watch(model: onnx.ModelProto, early: Collection[str] = ()) -> onnx.ModelProto:
    """A copy of a graph that gives what its outputs are decoded from.

    Outputs are decoded from probabilities and other maps of the heads. The cells of the peaks become inputs,
    called as they were with `.given` behind.

    Args:
        early: outputs whose last convolution leads on into the trunk; they are given as they are.
    """
    probabilities = {n.input[0]: n.output[0] for n in model.graph.node if n.op_type == "Sigmoid"}
    maps = {probabilities.get(name, name) for name in places(model.graph).heads}
    watched = _giving(model, maps.union(early))
    known = _values(model)
    cells = {node.output[1] for node in model.graph.node if node.op_type == "TopK"}
    for node in watched.graph.node:
        node.input[:] = [f"{name}.given" if name in cells else name for name in node.input]
    for name in sorted(cells):
        watched.graph.input.add(name=f"{name}.given", type=known[name].type)
    return watched


def _giving(model: onnx.ModelProto, tensors: Iterable[str]) -> onnx.ModelProto:
    """A copy of a graph with these tensors for outputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    known = _values(model)
    del copy.graph.output[:]
    copy.graph.output.extend(known[name] for name in sorted(tensors))
    return copy


def _values(model: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    return {value.name: value for value in (*graph.value_info, *graph.output)}


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


def run(model: onnx.ModelProto, frames: Sequence[Mapping[str, np.ndarray]]) -> Maps:
    """The outputs of a graph for each frame, by ONNX Runtime."""
    engine = OnnxRuntimeEngine(model.SerializeToString())
    return [engine.run(inputs) for inputs in frames]
