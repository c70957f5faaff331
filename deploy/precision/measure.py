"""Make the golden frames of a network, and measure and bound how closely an engine must reproduce their outputs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, TensorProto, numpy_helper

from deploy.engine import in_sequence
from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.golden import (
    QUANTITIES,
    GoldenFrame,
    clear_detections,
    dense_spreads,
    differing,
    match_detections,
    score_spread,
    state_difference,
)
from deploy.tolerances import Precision, Ranked, Size, Spread, Tolerances
from perception.errors import InputError
from perception.frame import Arrays
from perception.io.section import Section, Share
from perception.state import states_of
from perception.tasks.outputs import Kind, Output
from perception.tasks.task import Task, part_of


class Bounds(Section):
    """The least or the largest tolerances of any network."""

    ranked: Ranked
    cells: Spread  # of a raster, in its `scale`
    unsteady: Size  # of a raster or value that is not `steady`, in its `scale`
    labels: Share  # of an output of class indices

    def dense(self, output: Output) -> Spread:
        """Bounds for each channel of a raster or a value."""
        if output.steady and output.kind == "raster":
            return Spread(each=self.cells.each * output.scale, mean=self.cells.mean)
        each = self.ranked.score.each if output.steady else self.unsteady
        return Spread(each=each * output.scale, mean=0)

    @property
    def state(self) -> float:
        """Bound for the state of a network with a memory, which may differ as much as its scores."""
        return self.ranked.score.each

    def all(self, tasks: Mapping[str, Task[Any]], remembers: bool = False) -> Tolerances:
        """Bounds for the outputs of these tasks, and for the state of a network with a memory."""
        return Tolerances(
            ranked={name: self.ranked for name, task in tasks.items() if task.ranked},
            dense={
                name: dict.fromkeys(output.names, self.dense(output))
                for name, output in outputs_of(tasks, "raster", "value").items()
            },
            scales=scales_of(tasks),
            labels={name: self.labels if out.cells else 1.0 for name, out in outputs_of(tasks, "labels").items()},
            state=self.state if remembers else None,
        )


def outputs_of(tasks: Mapping[str, Task[Any]], *kinds: Kind) -> dict[str, Output]:
    """The outputs of these kinds, by the names of their tensors, TASK/NAME."""
    every = ((name, output) for name, task in tasks.items() for output in task.outputs)
    return {f"{name}/{output.name}": output for name, output in every if output.kind in kinds}


def scales_of(tasks: Mapping[str, Task[Any]]) -> dict[str, float]:
    """TASK/NAME -> `Output.scale` where it is not 1."""
    every = outputs_of(tasks, "raster", "value").items()
    return {name: output.scale for name, output in every if output.scale != 1}


def _bounds(
    score: Pair, box: Pair, heading: Pair, velocity: Pair, cells: Pair, lost: float, unsteady: float, labels: float
) -> Bounds:
    score_, box_, heading_, velocity_, cells_ = (
        Spread(each=each, mean=mean) for each, mean in (score, box, heading, velocity, cells)
    )
    ranked = Ranked(score=score_, center=box_, size=box_, heading=heading_, velocity=velocity_, lost=lost)
    return Bounds(ranked=ranked, cells=cells_, unsteady=unsteady, labels=labels)


Pair = tuple[float, float]
# Engines in FP32 may always differ by the least. A network that multiplies rounding errors has greater tolerances.
LEAST = _bounds((1e-4, 1e-4), (1e-3, 1e-3), (1e-3, 1e-3), (1e-3, 1e-3), (1e-4, 1e-3), 0, 1e-4, 1e-4)
# The largest tolerances that an export writes. FP32 and FP16 are compared with torch. INT8 is compared with its own
# graph, but a value that rounds the other way in one layer changes others in the next, so that engines end up a
# quantisation step apart: single detections may differ a lot, but their mean may not, nor may a probability turn over.
BOUNDS: Mapping[Precision, Bounds] = MappingProxyType(
    {
        "fp32": _bounds((1e-3, 1e-3), (1e-2, 2e-3), (1e-2, 2e-3), (1e-2, 2e-3), (1e-3, 2e-3), 0, 1e-3, 2e-3),
        "fp16": _bounds((0.04, 0.02), (0.1, 0.02), (0.2, 0.02), (0.1, 0.02), (0.1, 0.02), 0.02, 0.04, 0.02),
        "int8": _bounds((0.25, 0.08), (0.6, 0.15), (0.6, 0.15), (0.8, 0.2), (0.6, 0.2), 0.1, 0.5, 0.25),
    }
)


# A refittable plan (`perception build --refit`) takes the weights of another graph of the same structure, which is all
# but the weights: nodes, names, shapes, types, and other constants.

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)

# Operator -> its inputs, from 0, that are trained weights. TensorRT identifies them by their names in the file, except
# those of BatchNormalization, which it combines; its refitter for ONNX combines the new ones likewise.
WEIGHTS = {
    "Add": (0, 1),
    "BatchNormalization": (1, 2, 3, 4),
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Div": (0, 1),
    "Gather": (0,),
    "Gemm": (0, 1, 2),
    "MatMul": (0, 1),
    "Mul": (0, 1),
    "Sub": (0, 1),
}


def structure_sha256(model: ModelProto) -> str:
    """The hash of a graph without its weights: equal for two graphs that differ in their weights alone."""
    rest, trained = ModelProto(), find_trained_weights(model.graph)
    rest.CopyFrom(model)
    for tensor in rest.graph.initializer:
        # Scalars are constants of the computation.
        if tensor.name in trained and tensor.data_type in FLOATS and tensor.dims:
            tensor.CopyFrom(TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims))
    return hashlib.sha256(rest.SerializeToString(deterministic=True)).hexdigest()


def find_trained_weights(graph: GraphProto) -> set[str]:
    """Names of the tensors that are only used as trained weights."""
    trained: set[str] = set()
    other: set[str] = set()
    for node in graph.node:
        for place, name in enumerate(node.input):
            (trained if place in WEIGHTS.get(node.op_type, ()) else other).add(name)
    return trained - other


MARGIN = 2.0  # factor of a tolerance over the measured difference, because engines round in different places
ERRORS = 2.0  # standard errors added to a mean, which may be small by chance
# Bits of mantissa of the emulated engines, by the precision of the graph. In FP32, 18 bits move the outputs by 1 to 3
# times as much as torch and ONNX Runtime differ.
MANTISSAS: dict[Precision, tuple[int, ...]] = {"fp32": (18,), "int8": (10, 12)}
SATURATED = 1 - 1e-6  # a score; single precision has steps of 6e-8 there

_REMEDY = {
    "fp32": "train the network further: too few detections stand out, or rounding changes its outputs",
    "fp16": "export at a higher precision",
    "int8": "export at a higher precision, or calibrate on drives that show all that the network was trained for",
}
FEW_LABELS = 2  # elements of an output of class indices that may always differ
FEWEST = 20  # detections to compare, or a quarter of a short list; with fewer none is compared
CLEAR_SCORE = 0.05  # above the last score of the list: detections that can be compared
LEAST_COMPARED, LEAST_SHARE = 10, 0.1  # number and share of the clear detections

Tasks = Mapping[str, Task[Any]]
Measured = tuple[GoldenFrame, list[Arrays]]  # and the outputs of the other engines


def make_golden_frames(
    graphs: Mapping[str, onnx.ModelProto],
    precision: Precision,
    frames: Mapping[str, tuple[Arrays, Arrays]],
    tasks: Tasks,
) -> tuple[tuple[GoldenFrame, ...], Tolerances]:
    """Make the golden frames of each graph, by file name, and measure the tolerances.

    FP16 is compared with the trained network, and its tolerances are measured against it. Those of FP32 and INT8 are
    measured by emulating the rounding of other engines: so a wrong graph does not widen them. An INT8 network can
    differ a lot from the trained one on frames unlike those it was calibrated on, so it is compared with its own graph.

    Args:
        frames: inputs, and outputs of the trained network, by name; in order, and without states (`GoldenFrame`).
    """
    ranked = [name for name, task in tasks.items() if task.ranked]
    golden: list[GoldenFrame] = []
    measured: list[Measured] = []
    for file, graph in graphs.items():
        run = in_sequence(OnnxRuntimeEngine(graph.SerializeToString()))
        emulated = (round_weights(graph, bits).SerializeToString() for bits in MANTISSAS.get(precision, ()))
        others = [in_sequence(OnnxRuntimeEngine(each, optimise=False)) for each in emulated] or [run]
        for name, (inputs, trained) in frames.items():
            outputs = trained if precision == "fp16" else run(inputs)
            written = trained if precision == "fp32" else outputs
            found: list[Arrays] = [other(inputs) for other in others]
            compared = {
                task: find_steady(part_of(task, outputs), [part_of(task, each) for each in found], precision)
                & is_below_saturation(part_of(task, written))
                for task in ranked
            }
            frame = GoldenFrame(name, inputs, outputs, compared, file)
            measured.append((frame, found))
            golden.append(replace(frame, outputs=written))
    return tuple(golden), measure_tolerances(measured, precision, tasks)


def round_weights(graph: onnx.ModelProto, mantissa: int) -> onnx.ModelProto:
    """A copy with float weights rounded to this many bits of mantissa, to emulate the rounding of another engine.

    Rounded weights cause small differences in all layers. Behind an INT8 layer, 1e-7 can become a quantisation step.
    """
    copy, cut = onnx.ModelProto(), np.uint32(1 << (23 - mantissa))
    copy.CopyFrom(graph)
    trained = find_trained_weights(graph.graph)  # not tables of constants, which no engine rounds
    for tensor in copy.graph.initializer:
        if tensor.name in trained and tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 1:
            bits = numpy_helper.to_array(tensor).copy().view(np.uint32)
            rounded = ((bits + cut // 2) & ~(cut - np.uint32(1))).view(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))
    return copy


def find_steady(expected: Arrays, others: Sequence[Arrays], precision: Precision) -> np.ndarray:
    """The detections (bool, like scores) that all engines find, with scores clear of the last in the list."""
    half, lost = _halve_bounds(precision), BOUNDS[precision].ranked.lost
    apart = max(score_spread(expected["scores"], actual["scores"], lost).each for actual in others)
    apart = max(apart, LEAST.ranked.score.each / 10)  # below the spacing of an untrained network's scores
    compared = clear_detections(expected, min(apart, half.score.each))
    for i, frame in enumerate(compared):
        for actual in others:
            frame.flat[match_detections(expected, actual, i, frame, half).lost] = False
        if lost:  # one of a few would exceed this share
            frame &= frame.sum() >= min(FEWEST, frame.size // 4)
    return compared


def is_below_saturation(outputs: Arrays) -> np.ndarray:
    """The detections (bool, like scores) whose scores are not 1 but for rounding.

    Where they are, neighbouring cells tie, and which one is the peak depends on how an engine computes a sigmoid.
    """
    return outputs["scores"] < SATURATED


def measure_tolerances(measured: Sequence[Measured], precision: Precision, tasks: Tasks) -> Tolerances:
    """Return `MARGIN` times the largest single difference, and the mean difference plus `ERRORS` standard errors."""
    tolerances = Tolerances(
        ranked={name: _make_ranked(measured, precision, name) for name, task in tasks.items() if task.ranked},
        dense={
            name: _dense(measured, precision, name, output)
            for name, output in outputs_of(tasks, "raster", "value").items()
        },
        scales=scales_of(tasks),
        labels={name: _labels(measured, name) for name in outputs_of(tasks, "labels")},
        state=_state(measured),
    )
    require_bounded(tolerances, precision, tasks)
    frames = [frame for frame, _ in measured]
    for file in {frame.graph for frame in frames}:
        _require_enough([frame for frame in frames if frame.graph == file], f"{file} in {precision}", precision)
    return tolerances


def require_bounded(tolerances: Tolerances, precision: Precision, tasks: Tasks) -> None:
    bounds = dict(BOUNDS[precision].all(tasks, tolerances.state is not None).numbers())
    for name, number in tolerances.numbers():
        if number > bounds[name]:
            raise InputError(
                f"the graph in {precision} does not compute the network: tolerance {name} is {number:g}, at most "
                f"{bounds[name]:g}; {_REMEDY[precision]}"
            )


def _require_enough(frames: Sequence[GoldenFrame], where: str, precision: Precision) -> None:
    """Raise InputError if too few of the clear detections are compared: less than 10 %, or 10 out of 40 or more.

    An untrained network gives equal scores everywhere: it has no clear detections, and its boxes cannot be compared.
    """
    for task in frames[0].compared:
        outputs = [part_of(task, frame.outputs) for frame in frames]
        clear = sum(int(clear_detections(each, CLEAR_SCORE / 2).sum()) for each in outputs)
        compared = sum(int(frame.compared[task].sum()) for frame in frames)
        least = max(LEAST_COMPARED * (clear >= 4 * LEAST_COMPARED), int(LEAST_SHARE * clear))
        if compared < least:
            raise InputError(
                f"{where}: compares {compared} of {clear} detections, {least} are needed; {_REMEDY[precision]}"
            )


def _make_ranked(measured: Sequence[Measured], precision: Precision, task: str) -> Ranked:
    least, half, lost = LEAST.ranked, _halve_bounds(precision), BOUNDS[precision].ranked.lost
    spreads = {name: [spread] for name, spread in least.spreads()}
    for frame, others in measured:
        expected = part_of(task, frame.outputs)
        for actual in (part_of(task, other) for other in others):
            for i, compared in enumerate(frame.compared[task]):
                same = match_detections(expected, actual, i, compared, half)
                for name in QUANTITIES:
                    spread = same.spread(name, ERRORS)
                    spreads[name].append(_round_spread(MARGIN * spread.each, spread.mean))
            off = score_spread(expected["scores"], actual["scores"], lost)
            spreads["score"].append(_round_spread(MARGIN * off.each, MARGIN * off.mean))
    return Ranked(**{name: _largest(found) for name, found in spreads.items()}, lost=lost)


def _dense(measured: Sequence[Measured], precision: Precision, name: str, output: Output) -> dict[str, Spread]:
    """Spread of each channel. Its mean is at least the average over the channels, as it may be small by chance."""
    least, bound = LEAST.dense(output), BOUNDS[precision].dense(output)
    step = output.scale * float(np.finfo(np.float16).eps) if precision == "fp16" else 0.0  # between two numbers
    least = least.model_copy(update={"each": max(least.each, step)})
    pairs = [(frame.outputs[name], other[name]) for frame, others in measured for other in others]
    found = [dense_spreads(expected, actual, output.scale) for expected, actual in pairs]
    largest = [_largest(each) for each in zip(*found, strict=True)]
    usual = sum(each.mean for each in largest) / max(1, len(largest))
    spreads = [_round_spread(MARGIN * each.each, MARGIN * max(each.mean, usual)) for each in largest]
    if not output.steady:
        spreads = [each.model_copy(update={"each": min(each.each, bound.each)}) for each in spreads]
    return {channel: _largest([each, least]) for channel, each in zip(output.names, spreads, strict=True)}


def _labels(measured: Sequence[Measured], name: str) -> float:
    """Share of the class indices that may differ: in any case a few, which may lie on an edge between two classes."""
    found = [differing(frame.outputs[name], other[name]) for frame, others in measured for other in others]
    few = FEW_LABELS / measured[0][0].outputs[name].size
    return max(LEAST.labels, min(1.0, float(f"{max(MARGIN * max(found), few):.2g}")))


def _state(measured: Sequence[Measured]) -> float | None:
    found = [
        state_difference(frame.outputs[name], other[name])
        for frame, others in measured
        for other in others
        for name in states_of(frame.outputs).values()
    ]
    return max(LEAST.state, float(f"{MARGIN * max(found):.2g}")) if found else None


def _halve_bounds(precision: Precision) -> Ranked:
    """The bounds divided by `MARGIN`, with no limit on lost detections."""
    bound = BOUNDS[precision].ranked
    halved = {name: Spread(each=each.each / MARGIN, mean=each.mean / MARGIN) for name, each in bound.spreads()}
    return bound.model_copy(update={**halved, "lost": 1.0})


def _largest(spreads: Iterable[Spread]) -> Spread:
    every = list(spreads)
    return Spread(each=max(each.each for each in every), mean=max(each.mean for each in every))


def _round_spread(each: float, mean: float) -> Spread:
    return Spread(each=float(f"{each:.2g}"), mean=float(f"{mean:.2g}"))
