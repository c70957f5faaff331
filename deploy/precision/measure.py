"""What the golden frames of a network are, and how exactly an engine must give their outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.golden import (
    QUANTITIES,
    Arrays,
    GoldenFrame,
    distinct,
    map_spreads,
    matched,
    require_enough,
    score_spread,
    sides,
)
from deploy.tolerances import BOUNDS, REMEDY, Precision, Spread, Tolerances, exact, require_bounded
from perception.errors import InputError

MARGIN = 2.0  # of a tolerance over what was measured in one detection: engines round in different places
ERRORS = 2.0  # of the mean, in standard errors: it may be small by chance
MANTISSAS = (10, 12)  # bits, of the engines that are emulated

FEWEST = 20  # detections, or a quarter of a short list: the mean of fewer is chance, and none is compared

Proof = tuple[GoldenFrame, list[Arrays]]  # and the outputs of other engines that compute the same


def golden_of(
    graphs: Mapping[str, onnx.ModelProto], precision: Precision, frames: Mapping[str, tuple[Arrays, Arrays]]
) -> tuple[tuple[GoldenFrame, ...], Tolerances]:
    """The golden frames of each graph, and how far engines may be off.

    FP16 is compared with the trained network, from which the tolerances are measured. INT8 is not: where a network is
    shown what it was not calibrated on, it is anything but the trained one, and still an engine must compute it. It is
    compared with its own graph, and the tolerances are measured on the rounding of other engines, emulated.

    Args:
        graphs: by the name of their file.
        frames: inputs, and the outputs of the trained network, by name.

    Raises:
        InputError: a graph is further off than its precision may be.
    """
    if precision == "fp32":
        least = BOUNDS["fp32"].score.each / 10  # engines are that close, and scores of a young network too
        exactly = [GoldenFrame(name, *each, distinct(each[1], least)) for name, each in frames.items()]
        _require_enough(exactly, precision)
        return tuple(exactly), exact(exactly[0].outputs)
    measured: list[Proof] = []
    for file, graph in graphs.items():
        engine = OnnxRuntimeEngine(graph.SerializeToString())
        others = [engine] if precision == "fp16" else _others(graph)
        for name, (inputs, trained) in frames.items():
            outputs = trained if precision == "fp16" else engine.run(inputs)
            found: list[Arrays] = [other.run(inputs) for other in others]
            measured.append((GoldenFrame(name, inputs, outputs, steady(outputs, found, precision), file), found))
    tolerances = tolerances_of(measured, precision)
    return tuple(frame for frame, _ in measured), tolerances


def _others(graph: onnx.ModelProto) -> list[OnnxRuntimeEngine]:
    return [OnnxRuntimeEngine(elsewhere(graph, bits).SerializeToString(), fused=False) for bits in MANTISSAS]


def elsewhere(graph: onnx.ModelProto, mantissa: int) -> onnx.ModelProto:
    """A copy whose float weights are rounded to so many bits of mantissa: it rounds as differently as engines may.

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
    """Which detections rounding does not decide about: all engines find them, far enough above the last of the list."""
    half = _half(precision)
    lost = BOUNDS[precision].lost
    apart = max(score_spread(expected["scores"], actual["scores"], lost).each for actual in others)
    compared = distinct(expected, min(apart, half.score.each))
    for i, frame in enumerate(compared):
        for actual in others:
            frame.flat[matched(*sides(expected, actual, i), frame, half).lost] = False
        frame &= frame.sum() >= min(FEWEST, frame.size // 4)
    return compared


def tolerances_of(measured: Sequence[Proof], precision: Precision) -> Tolerances:
    """`MARGIN` times as far as single detections are off; what the mean is off by with `ERRORS` standard errors.

    Raises:
        InputError: beyond what the precision may be off by, or too few detections are found again.
    """
    least, half = BOUNDS["fp32"], _half(precision)
    boxes = {name: [getattr(least, name)] for name in QUANTITIES}
    scores, maps, recognised = [least.score], [], least.recognised
    for frame, others in measured:
        for actual in others:
            for i, asked in enumerate(frame.compared):
                same = matched(*sides(frame.outputs, actual, i), asked, half)
                for name in QUANTITIES:
                    spread = same.spread(name, ERRORS)
                    boxes[name].append(_rounded(MARGIN * spread.each, spread.mean))
            off = score_spread(frame.outputs["scores"], actual["scores"], BOUNDS[precision].lost)
            scores.append(_rounded(MARGIN * off.each, MARGIN * off.mean))
            if "map" in actual:
                maps.append(map_spreads(frame.outputs["map"], actual["map"]))
            if "recognised" in actual:
                moved = float(np.abs(frame.outputs["recognised"] - actual["recognised"]).max())
                recognised = max(recognised, _rounded(MARGIN * min(moved, 0.5), 0).each)
    of_map = _of_map(maps)
    tolerances = Tolerances(
        score=_largest(scores),
        **{name: _largest(found) for name, found in boxes.items()},
        map=of_map,
        recognised=recognised,
        lost=BOUNDS[precision].lost,
    )
    try:
        require_bounded(tolerances, precision, len(of_map), f"the graph in {precision} does not compute the network")
    except InputError as error:
        raise _refusal(error, precision) from None
    _require_enough([frame for frame, _ in measured], precision)
    return tolerances


def _require_enough(frames: Sequence[GoldenFrame], precision: Precision) -> None:
    for file in {frame.graph for frame in frames}:
        try:
            require_enough([frame for frame in frames if frame.graph == file], f"{file} in {precision}")
        except InputError as error:
            raise _refusal(error, precision) from None


def _refusal(error: InputError, precision: Precision) -> InputError:
    """What the exporter can do about what a vehicle would refuse."""
    remedy = {
        "fp32": "train the network further: too few detections stand out",
        "fp16": "export at a higher precision",
        "int8": "export at a higher precision, or calibrate on drives that show all that the network was trained for",
    }[precision]
    return InputError(f"{str(error).removesuffix(f'; {REMEDY}')}; {remedy}")


def _of_map(maps: Sequence[Sequence[Spread]]) -> tuple[Spread, ...]:
    """Of each class; a mean that is small by chance in one is no smaller than that of the classes together."""
    least = BOUNDS["fp32"].map[0]
    largest = [_largest(each) for each in zip(*maps, strict=True)]
    usual = sum(each.mean for each in largest) / max(1, len(largest))
    return tuple(_largest([_rounded(MARGIN * each.each, MARGIN * max(each.mean, usual)), least]) for each in largest)


def _half(precision: Precision) -> Tolerances:
    """The bounds over `MARGIN`, however many are lost."""
    bound = BOUNDS[precision]
    halved = {
        name: Spread(each=getattr(bound, name).each / MARGIN, mean=getattr(bound, name).mean / MARGIN)
        for name in ("score", *QUANTITIES)
    }
    return bound.model_copy(update={**halved, "lost": 1.0})


def _largest(spreads: Iterable[Spread]) -> Spread:
    every = list(spreads)
    return Spread(each=max(each.each for each in every), mean=max(each.mean for each in every))


def _rounded(each: float, mean: float) -> Spread:
    """To two digits."""
    return Spread(each=float(f"{each:.2g}"), mean=float(f"{mean:.2g}"))
