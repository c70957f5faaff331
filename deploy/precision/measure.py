"""What the golden frames of a network are, and how exactly an engine must give their outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.golden import (
    QUANTITIES,
    Arrays,
    GoldenFrame,
    dense_spreads,
    distinct,
    matched,
    require_enough,
    score_spread,
    sides,
)
from deploy.tolerances import (
    BOUNDS,
    REMEDY,
    Precision,
    Ranked,
    Spread,
    Tolerances,
    dense_bound,
    exact,
    require_bounded,
)
from perception.errors import InputError
from perception.tasks.task import Output, Task, part_of

MARGIN = 2.0  # of a tolerance over what was measured in one detection: engines round in different places
ERRORS = 2.0  # of the mean, in standard errors: it may be small by chance
MANTISSAS = (10, 12)  # bits, of the engines that are emulated

FEWEST = 20  # detections, or a quarter of a short list: the mean of fewer is chance, and none is compared

Tasks = Mapping[str, Task[Any]]
Proof = tuple[GoldenFrame, list[Arrays]]  # and the outputs of other engines that compute the same


def golden_of(
    graphs: Mapping[str, onnx.ModelProto],
    precision: Precision,
    frames: Mapping[str, tuple[Arrays, Arrays]],
    tasks: Tasks,
) -> tuple[tuple[GoldenFrame, ...], Tolerances]:
    """The golden frames of each graph, and how far engines may be off.

    FP16 is compared with the trained network, from which the tolerances are measured. INT8 is not:
    on inputs unlike those it was calibrated on, an INT8 network differs much from the trained one, and still an engine
    must compute it. It is compared with its own graph, and the tolerances are measured with the emulated rounding of
    other engines.

    Args:
        graphs: by the name of their file.
        frames: inputs, and the outputs of the trained network, by name.
        tasks: of the network.

    Raises:
        InputError: a graph is further off than its precision may be.
    """
    ranked = [name for name, task in tasks.items() if task.ranked]
    if precision == "fp32":
        least = BOUNDS["fp32"].ranked.score.each / 10  # engines are that close, and scores of a young network too
        exactly = [
            GoldenFrame(name, *each, {task: distinct(part_of(task, each[1]), least) for task in ranked})
            for name, each in frames.items()
        ]
        _require_enough(exactly, precision)
        return tuple(exactly), exact(tasks)
    measured: list[Proof] = []
    for file, graph in graphs.items():
        engine = OnnxRuntimeEngine(graph.SerializeToString())
        others = [engine] if precision == "fp16" else _others(graph)
        for name, (inputs, trained) in frames.items():
            outputs = trained if precision == "fp16" else engine.run(inputs)
            found: list[Arrays] = [other.run(inputs) for other in others]
            compared = {
                task: steady(part_of(task, outputs), [part_of(task, each) for each in found], precision)
                for task in ranked
            }
            measured.append((GoldenFrame(name, inputs, outputs, compared, file), found))
    tolerances = tolerances_of(measured, precision, tasks)
    return tuple(frame for frame, _ in measured), tolerances


def _others(graph: onnx.ModelProto) -> list[OnnxRuntimeEngine]:
    return [OnnxRuntimeEngine(elsewhere(graph, bits).SerializeToString(), optimise=False) for bits in MANTISSAS]


def elsewhere(graph: onnx.ModelProto, mantissa: int) -> onnx.ModelProto:
    """A copy with float weights rounded to so many bits of mantissa: it emulates the rounding of another engine.

    INT8 turns a difference of 1e-7 in front of a layer into a whole step behind it, for some numbers; this makes sure
    that all layers get such differences.
    """
    copy, cut = onnx.ModelProto(), np.uint32(1 << (23 - mantissa))
    copy.CopyFrom(graph)
    for tensor in copy.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 1:
            bits = numpy_helper.to_array(tensor).copy().view(np.uint32)
            rounded = ((bits + cut // 2) & ~(cut - np.uint32(1))).view(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))
    return copy


def steady(expected: Arrays, others: Sequence[Arrays], precision: Precision) -> np.ndarray:
    """Which detections do not depend on rounding: all engines find them, far enough above the last of the list."""
    half, lost = _half(precision), BOUNDS[precision].ranked.lost
    apart = max(score_spread(expected["scores"], actual["scores"], lost).each for actual in others)
    compared = distinct(expected, min(apart, half.score.each))
    for i, frame in enumerate(compared):
        for actual in others:
            frame.flat[matched(*sides(expected, actual, i), frame, half).lost] = False
        frame &= frame.sum() >= min(FEWEST, frame.size // 4)
    return compared


def tolerances_of(measured: Sequence[Proof], precision: Precision, tasks: Tasks) -> Tolerances:
    """`MARGIN` times as far as single numbers are off; what the mean is off by with `ERRORS` standard errors.

    Raises:
        InputError: beyond what the precision may be off by, or too few detections are found again.
    """
    tolerances = Tolerances(
        ranked={name: _ranked(measured, precision, name) for name, task in tasks.items() if task.ranked},
        dense={
            f"{name}/{output.name}": _dense(measured, precision, f"{name}/{output.name}", output)
            for name, task in tasks.items()
            if not task.ranked
            for output in task.outputs
        },
    )
    try:
        require_bounded(tolerances, precision, tasks, f"the graph in {precision} does not compute the network")
    except InputError as error:
        raise _refusal(error, precision) from None
    _require_enough([frame for frame, _ in measured], precision)
    return tolerances


def _ranked(measured: Sequence[Proof], precision: Precision, task: str) -> Ranked:
    least, half, lost = BOUNDS["fp32"].ranked, _half(precision), BOUNDS[precision].ranked.lost
    spreads = {name: [spread] for name, spread in least.spreads()}
    for frame, others in measured:
        expected = part_of(task, frame.outputs)
        for actual in (part_of(task, other) for other in others):
            for i, asked in enumerate(frame.compared[task]):
                same = matched(*sides(expected, actual, i), asked, half)
                for name in QUANTITIES:
                    spread = same.spread(name, ERRORS)
                    spreads[name].append(_rounded(MARGIN * spread.each, spread.mean))
            off = score_spread(expected["scores"], actual["scores"], lost)
            spreads["score"].append(_rounded(MARGIN * off.each, MARGIN * off.mean))
    return Ranked(**{name: _largest(found) for name, found in spreads.items()}, lost=lost)


def _dense(measured: Sequence[Proof], precision: Precision, name: str, output: Output) -> dict[str, Spread]:
    """Of each channel; a mean that is small by chance in one is no smaller than that of the channels together."""
    least, bound = dense_bound(output, "fp32"), dense_bound(output, precision)
    found = [dense_spreads(frame.outputs[name], other[name]) for frame, others in measured for other in others]
    largest = [_largest(each) for each in zip(*found, strict=True)]
    usual = sum(each.mean for each in largest) / max(1, len(largest))
    spreads = [_rounded(MARGIN * each.each, MARGIN * max(each.mean, usual)) for each in largest]
    if not output.steady:
        spreads = [each.model_copy(update={"each": min(each.each, bound.each)}) for each in spreads]
    return {channel: _largest([each, least]) for channel, each in zip(output.channels, spreads, strict=True)}


def _require_enough(frames: Sequence[GoldenFrame], precision: Precision) -> None:
    for file in {frame.graph for frame in frames}:
        try:
            require_enough([frame for frame in frames if frame.graph == file], f"{file} in {precision}")
        except InputError as error:
            raise _refusal(error, precision) from None


def _refusal(error: InputError, precision: Precision) -> InputError:
    """The error with a remedy for the exporter, in place of the one for the vehicle."""
    remedy = {
        "fp32": "train the network further: too few detections stand out",
        "fp16": "export at a higher precision",
        "int8": "export at a higher precision, or calibrate on drives that show all that the network was trained for",
    }[precision]
    return InputError(f"{str(error).removesuffix(f'; {REMEDY}')}; {remedy}")


def _half(precision: Precision) -> Ranked:
    """The bounds over `MARGIN`, however many are lost."""
    bound = BOUNDS[precision].ranked
    halved = {name: Spread(each=each.each / MARGIN, mean=each.mean / MARGIN) for name, each in bound.spreads()}
    return bound.model_copy(update={**halved, "lost": 1.0})


def _largest(spreads: Iterable[Spread]) -> Spread:
    every = list(spreads)
    return Spread(each=max(each.each for each in every), mean=max(each.mean for each in every))


def _rounded(each: float, mean: float) -> Spread:
    """The spread, to two digits."""
    return Spread(each=float(f"{each:.2g}"), mean=float(f"{mean:.2g}"))
