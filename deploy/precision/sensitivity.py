"""Decide which blocks of the network become INT8, by quantising each alone and measuring the change of the outputs."""

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

LARGEST_ERROR = 0.1  # up to which a block becomes INT8


def blocks(graph: onnx.GraphProto) -> dict[str, list[str]]:
    """Outputs of the `quantisable` convolutions by block, such as trunk.stages.0.

    The exporter names weights, those of modules too, by their path in the model. The block is the first two parts of
    the path, and the index in a list behind them.
    """
    found: dict[str, list[str]] = {}
    for output, node in quantisable(graph).items():
        parts = node.input[1].removeprefix("model.").split(".")
        name = ".".join(parts[:3] if parts[2:3] and parts[2].isdigit() else parts[:2])
        found.setdefault(name, []).append(output)
    return found


def sensitivity(
    model: onnx.ModelProto,
    ranges: Ranges,
    frames: Sequence[Inputs],
    trunk_outputs: Collection[str] = (),
    exact: Collection[str] = (),
) -> tuple[Block, ...]:
    """Measure the error of each block on these frames; it becomes INT8 up to `LARGEST_ERROR`.

    Args:
        trunk_outputs: see `with_measured_outputs`.
        exact: blocks that never become INT8.
    """
    measured, frames = _with_fixed_peaks(model, frames, trunk_outputs)
    expected = run(measured, frames)
    table = []
    for name, layers in blocks(model.graph).items():
        off = error(expected, run(quantise(measured, layers, ranges, TENSORRT), frames))
        precision: Precision = "int8" if off <= LARGEST_ERROR and name not in exact else "fp32"
        table.append(Block(name=name, layers=len(layers), error=off, precision=precision))
    return tuple(table)


def combined_error(
    model: onnx.ModelProto,
    layers: Collection[str],
    ranges: Ranges,
    frames: Sequence[Inputs],
    layout: Layout,
    trunk_outputs: Collection[str] = (),
) -> float:
    """The error with all these layers in INT8."""
    measured, frames = _with_fixed_peaks(model, frames, trunk_outputs)
    return error(run(measured, frames), run(quantise(measured, layers, ranges, layout), frames))


def _with_fixed_peaks(
    model: onnx.ModelProto, frames: Sequence[Inputs], trunk_outputs: Collection[str]
) -> tuple[onnx.ModelProto, Sequence[Inputs]]:
    """The graph to measure errors on (`with_measured_outputs`), and the frames with FP32's peaks as further inputs.

    Boxes may be regressed at the peaks only. With FP32's peaks given, values at the same cells are compared.
    """
    cells = [node.output[1] for node in model.graph.node if node.op_type == "TopK"]
    found = run(_with_outputs(model, cells), frames) if cells else [{} for _ in frames]
    given = [{f"{name}.given": cell for name, cell in each.items()} for each in found]
    return with_measured_outputs(model, trunk_outputs), [
        {**frame, **each} for frame, each in zip(frames, given, strict=True)
    ]


def with_measured_outputs(model: onnx.ModelProto, trunk_outputs: Collection[str] = ()) -> onnx.ModelProto:
    """A copy of a graph whose outputs are those that errors are measured on: the probabilities and maps of the heads.

    The cells of the peaks become inputs, named with the suffix `.given`.

    Args:
        trunk_outputs: outputs whose last convolution also feeds the trunk; they are measured themselves.
    """
    probabilities = {n.input[0]: n.output[0] for n in model.graph.node if n.op_type == "Sigmoid"}
    maps = {probabilities.get(name, name) for name in places(model.graph).heads}
    measured = _with_outputs(model, maps.union(trunk_outputs))
    known = _values(model)
    cells = {node.output[1] for node in model.graph.node if node.op_type == "TopK"}
    for node in measured.graph.node:
        node.input[:] = [f"{name}.given" if name in cells else name for name in node.input]
    for name in sorted(cells):
        measured.graph.input.add(name=f"{name}.given", type=known[name].type)
    return measured


def _with_outputs(model: onnx.ModelProto, tensors: Iterable[str]) -> onnx.ModelProto:
    """A copy of a graph with these tensors as outputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    known = _values(model)
    del copy.graph.output[:]
    copy.graph.output.extend(known[name] for name in sorted(tensors))
    return copy


def _values(model: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    return {value.name: value for value in (*graph.value_info, *graph.output)}


Maps = list[dict[str, np.ndarray]]  # one dict per frame


def error(expected: Maps, actual: Maps) -> float:
    """The largest relative RMS error of any map, over all cells and frames."""
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
    """Run a graph on each frame in ONNX Runtime."""
    engine = OnnxRuntimeEngine(model.SerializeToString())
    return [engine.run(inputs) for inputs in frames]
