"""Convert an FP32 graph to FP16 or INT8; blocks become INT8 by what each alone changes of the outputs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from deploy.bundle import CPU_ONNX, ONNX
from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.manifest import Block
from deploy.precision.calibrate import ranges
from deploy.precision.graph import drop_unused, floats, places
from deploy.precision.quantise import CPU, TENSORRT, Layout, Ranges, activations, quantisable, quantise
from deploy.tolerances import Precision
from perception.errors import InputError
from perception.frame import Arrays
from perception.tasks.task import Task

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


class Errors:
    """Measures the `error` of a network with some layers in INT8 on these frames.

    Boxes may be regressed at the peaks only. With FP32's peaks given as further inputs, values at the same cells are
    compared.
    """

    def __init__(
        self, model: onnx.ModelProto, ranges: Ranges, frames: Sequence[Arrays], trunk_outputs: Collection[str] = ()
    ) -> None:
        self.graph, self.ranges = model.graph, ranges
        self._require_stage = with_measured_outputs(model, trunk_outputs)
        cells = [node.output[1] for node in model.graph.node if node.op_type == "TopK"]
        found = run(_with_outputs(model, cells), frames) if cells else [{} for _ in frames]
        given = [{f"{name}.given": cell for name, cell in each.items()} for each in found]
        self._frames = [{**frame, **each} for frame, each in zip(frames, given, strict=True)]
        self._expected = run(self._require_stage, self._frames)

    def of(self, layers: Collection[str], layout: Layout) -> float:
        """The error with these layers in INT8."""
        return error(self._expected, run(quantise(self._require_stage, layers, self.ranges, layout), self._frames))


def sensitivity(errors: Errors, exact: Collection[str] = ()) -> tuple[Block, ...]:
    """Measure the error of each block; it becomes INT8 up to `LARGEST_ERROR`, unless it is one of the exact ones."""
    table = []
    for name, layers in blocks(errors.graph).items():
        off = errors.of(layers, TENSORRT)
        precision: Precision = "int8" if off <= LARGEST_ERROR and name not in exact else "fp32"
        table.append(Block(name=name, layers=len(layers), error=off, precision=precision))
    return tuple(table)


def with_measured_outputs(model: onnx.ModelProto, trunk_outputs: Collection[str] = ()) -> onnx.ModelProto:
    """A copy of a graph whose outputs are those that errors are measured on: the probabilities and maps of the heads.

    The cells of the peaks become inputs, named with the suffix `.given`. Of `trunk_outputs` the last convolution also
    feeds the trunk; they are measured themselves.
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


_BEYOND = 1e6  # the largest `error`; as of numbers that are not finite, and of a map that should be 0


def error(expected: Maps, actual: Maps) -> float:
    """The largest relative RMS error of any map, over all cells and frames."""
    return max(_error_of([each[name] for each in expected], [each[name] for each in actual]) for name in expected[0])


def _error_of(expected: Sequence[np.ndarray], actual: Sequence[np.ndarray]) -> float:
    off = sum(np.square(a - b).sum() for a, b in zip(expected, actual, strict=True))
    size = sum(np.square(each).sum() for each in expected)
    if off == 0:
        return 0.0
    found = float(np.sqrt(off / size)) if size > 0 else _BEYOND
    return found if found <= _BEYOND else _BEYOND  # also for NaN


def run(model: onnx.ModelProto, frames: Sequence[Mapping[str, np.ndarray]]) -> Maps:
    engine = OnnxRuntimeEngine(model.SerializeToString())
    return [engine.run(inputs) for inputs in frames]


# What stays FP32 in FP16 sums over many numbers, or places things (a coordinate of 50 m has steps of 3 cm in FP16, and
# indices above 2048 are not exact), or is read again in every frame (the memory), or ranks scores, which would tie;
# and inputs and outputs, so that bundles are alike at every precision. `onnxruntime.transformers.float16` and
# `onnxconverter_common` cast the output of every FP32 node to FP16 and back, which rounds the coordinates.

# Operators that sum over many numbers, or whose outputs are much larger or smaller than their inputs.
FP32_OPERATORS = frozenset(
    {"Softmax", "LogSoftmax", "ReduceSum", "ReduceMean", "ReduceL2", "ReduceSumSquare", "GlobalAveragePool", "Exp"}
    | {"BatchNormalization", "InstanceNormalization", "LayerNormalization", "GroupNormalization", "Pow", "Sqrt", "Log"}
)
# Inputs that ONNX defines as FP32: region and scales of Resize.
_FP32_INPUTS = {"Resize": (1, 2)}


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of an FP32 graph in FP16, except for the parts above."""
    half = onnx.ModelProto()
    half.CopyFrom(model)
    graph, parts, single = half.graph, places(model.graph), floats(model)
    kept = parts.encoding | parts.last | parts.decoding | parts.memory
    constants = {tensor.name: tensor for tensor in graph.initializer}
    types = dict.fromkeys(single, TensorProto.FLOAT)
    nodes: list[onnx.NodeProto] = []
    casts: dict[tuple[str, int], str] = {}

    def cast(name: str, to: int) -> str:
        if types[name] == to:
            return name
        if (name, to) not in casts:
            casts[name, to] = typed = f"{name}.{'half' if to == TensorProto.FLOAT16 else 'single'}"
            if name in constants:
                graph.initializer.append(_half(constants[name], typed))
            else:
                nodes.append(helper.make_node("Cast", [name], [typed], name=typed, to=to))
        return casts[name, to]

    for node in graph.node:
        keep = node.output[0] in kept or node.op_type in FP32_OPERATORS
        to = TensorProto.FLOAT if keep else TensorProto.FLOAT16
        for i, name in enumerate(node.input):
            if name in types and i not in _FP32_INPUTS.get(node.op_type, ()):
                node.input[i] = cast(name, to)
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = to
        types |= {name: to for name in node.output if name in single}
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]  # its types are FP32
    drop_unused(graph)
    return half


def _half(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    values = numpy_helper.to_array(tensor)
    if np.abs(values).max(initial=0) > np.finfo(np.float16).max:
        raise InputError(f"{tensor.name}: holds {np.abs(values).max():.3g}, beyond FP16; export with another precision")
    return numpy_helper.from_array(values.astype(np.float16), name)


SENSITIVITY_FRAMES = 8  # calibration frames on which the blocks are tested

LARGEST_CHANGE = 0.2  # `error` of an output that is not steady
LARGEST_TOGETHER = 0.5  # `error` of the maps that detections and the map are decoded from
_CALIBRATION = ", or calibrate on drives that show all that the network was trained for"


@dataclass(frozen=True)
class ConvertedGraphs:
    """The graphs of a bundle at one precision."""

    graphs: dict[str, onnx.ModelProto]  # by name of the file
    blocks: tuple[Block, ...] = ()  # INT8: precision and error of each block
    ranges: Ranges = field(default_factory=dict)  # INT8: measured ranges of the activations


def convert(
    model: onnx.ModelProto, precision: Precision, frames: Sequence[Arrays], tasks: Mapping[str, Task[Any]]
) -> ConvertedGraphs:
    """Convert an FP32 graph to this precision; INT8 needs frames to measure the ranges of activations on."""
    if precision == "fp32":
        return ConvertedGraphs({ONNX: model})
    if precision == "fp16":
        return ConvertedGraphs({ONNX: to_half(model)})
    measured = ranges(model, activations(model.graph), frames)
    few = [frames[i] for i in np.linspace(0, len(frames) - 1, min(SENSITIVITY_FRAMES, len(frames))).astype(int)]
    trunk_outputs = [
        f"{name}/{each.name}"
        for name, task in tasks.items()
        if task.reads != "trunk"
        for each in task.outputs
        if each.kind != "labels"
    ]
    # The distance from the training data weighs features by how little they vary, so rounded ones are far from it.
    exact = [f"{part}.{name}" for name, task in tasks.items() if task.reads == "inputs" for part in ("heads", "added")]
    errors, members = Errors(model, measured, few, trunk_outputs), blocks(model.graph)
    table = sensitivity(errors, exact)
    layers = [layer for block in table if block.precision == "int8" for layer in members[block.name]]
    graphs = {}
    for name, layout in ((ONNX, TENSORRT), (CPU_ONNX, CPU)):
        if (off := errors.of(layers, layout)) > LARGEST_TOGETHER:
            raise InputError(
                f"int8 differs too much from fp32 on the drives it was calibrated on (error {off:.2f}, at most "
                f"{LARGEST_TOGETHER:g}); export at a higher precision{_CALIBRATION}"
            )
        graphs[name] = quantise(model, layers, measured, layout)
        require_close_outputs(model, graphs[name], few, tasks)
    return ConvertedGraphs(graphs, table, measured)


def require_close_outputs(
    model: onnx.ModelProto, converted: onnx.ModelProto, frames: Sequence[Arrays], tasks: Mapping[str, Task[Any]]
) -> None:
    """Raise InputError unless a converted graph's outputs that are not `steady` are close to those of the FP32 graph.

    They are compared on recorded frames. On the golden frames, which are unlike any drive, a classifier may be
    undecided, and then rounding changes its output a lot.
    """
    names = [f"{name}/{each.name}" for name, task in tasks.items() for each in task.outputs if not each.steady]
    expected, actual = (
        [{name: outputs[name] for name in names} for outputs in (run(graph, frames) if names else ())]
        for graph in (model, converted)
    )
    for name in names:
        off = error([{name: each[name]} for each in expected], [{name: each[name]} for each in actual])
        if off > LARGEST_CHANGE:
            raise InputError(
                f"int8 changes {name} too much on the drives it was calibrated on (error {off:.2f}, at most "
                f"{LARGEST_CHANGE:g}); export at a higher precision{_CALIBRATION}"
            )
