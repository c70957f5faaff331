"""What the golden frames of a network are, and how exactly an engine must give their outputs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.golden import Arrays, GoldenFrame, distinct, map_spreads, matched, require_agreement
from deploy.tolerances import BOUNDS, Precision, Spread, Tolerances, exact, require_bounded, require_enough
from perception.errors import InputError

MARGIN = 2.0  # of a tolerance over what was measured: engines round in different places
_DETECTIONS = ("boxes", "scores", "labels", "attributes")
_QUANTITIES = ("score", "center", "size", "heading", "velocity")

Proof = tuple[GoldenFrame, Arrays]  # and the outputs of another engine that computes the same


def golden_of(
    graphs: Mapping[str, onnx.ModelProto], precision: Precision, frames: Mapping[str, tuple[Arrays, Arrays]]
) -> tuple[tuple[GoldenFrame, ...], Tolerances]:
    """The golden frames of each graph, and how far engines may be off.

    FP16 is compared with the trained network, from which the tolerances are measured. INT8 is not: where a network is
    shown what it was not calibrated on, it is anything but the trained one, and still an engine must compute it. It is
    compared with its own graph, and the tolerances are measured on another engine's rounding, emulated.

    Args:
        graphs: by the name of their file.
        frames: inputs, and the outputs of the trained network, by name.

    Raises:
        InputError: a graph is further off than its precision may be.
    """
    if precision == "fp32":
        proofs = tuple(
            GoldenFrame(name, *each, distinct(each[1], BOUNDS["fp32"].score.each)) for name, each in frames.items()
        )
        return proofs, exact(proofs[0].outputs)
    measured: list[Proof] = []
    for file, graph in graphs.items():
        engine = OnnxRuntimeEngine(graph.SerializeToString())
        other = engine if precision == "fp16" else OnnxRuntimeEngine(elsewhere(graph).SerializeToString(), fused=False)
        for name, (inputs, trained) in frames.items():
            outputs = trained if precision == "fp16" else engine.run(inputs)
            actual = other.run(inputs)
            compared = steady(outputs, actual, precision)
            measured.append((GoldenFrame(name, inputs, outputs, compared, file), actual))
    tolerances = tolerances_of(measured, precision)
    for frame, actual in measured:
        require_agreement(frame.outputs, actual, f"the graph in {precision}", tolerances, frame.compared)
    return tuple(frame for frame, _ in measured), tolerances


def elsewhere(graph: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose float weights are rounded to a mantissa of 10 bits: it rounds as differently as engines may.

    INT8 turns a difference of 1e-7 in front of a layer into a whole step behind it, for some numbers; this makes sure
    that all layers get such differences.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    for tensor in copy.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 1:
            bits = numpy_helper.to_array(tensor).copy().view(np.uint32)
            rounded = ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))
    return copy


def steady(expected: Arrays, actual: Arrays, precision: Precision) -> np.ndarray:
    """Which detections rounding does not decide about: they are found, far enough above the last of the list."""
    apart = float(np.abs(expected["scores"] - actual["scores"]).max())
    compared = distinct(expected, min(apart, _half(precision).score.each))
    for i, frame in enumerate(compared):
        mine, other = ({k: side[k][i] for k in _DETECTIONS} for side in (expected, actual))
        frame.flat[matched(mine, other, frame, _half(precision)).lost] = False
    return compared


def tolerances_of(measured: list[Proof], precision: Precision) -> Tolerances:
    """`MARGIN` times as far as these are off: in the mean with one standard error, for it may be small by chance.

    Raises:
        InputError: beyond what the precision may be off by, or too few detections are found again.
    """
    least, spreads = BOUNDS["fp32"], {name: [getattr(BOUNDS["fp32"], name)] for name in _QUANTITIES}
    maps: list[list[Spread]] = []
    recognised = least.recognised / MARGIN
    for frame, actual in measured:
        for i, asked in enumerate(frame.compared):
            mine, other = ({k: side[k][i] for k in _DETECTIONS} for side in (frame.outputs, actual))
            found = matched(mine, other, asked, _half(precision))
            for name in _QUANTITIES:
                spreads[name].append(_widened(found.spread(name, errors=1)))
        apart = float(np.abs(frame.outputs["scores"] - actual["scores"]).max())
        spreads["score"].append(_widened(Spread(each=apart, mean=0)))
        if "map" in frame.outputs:
            maps.append([_widened(each) for each in map_spreads(frame.outputs["map"], actual["map"])])
        if "recognised" in frame.outputs:
            off = np.abs(frame.outputs["recognised"] - actual["recognised"]).max()
            recognised = max(recognised, float(off))
    of_map = tuple(_largest([*each, *least.map]) for each in zip(*maps, strict=True))
    tolerances = Tolerances(
        **{name: _largest(found) for name, found in spreads.items()},
        map=of_map,
        recognised=min(_rounded(MARGIN * recognised), BOUNDS[precision].recognised),
        lost=BOUNDS[precision].lost,
    )
    try:
        require_bounded(tolerances, precision, len(of_map), f"the graph in {precision} does not compute the network")
        compared = [frame.compared for frame, _ in measured]
        require_enough(
            sum(int(each.sum()) for each in compared), sum(each.size for each in compared), "the golden frames"
        )
    except InputError as error:
        calibrate = ", or calibrate on drives that show all that the network was trained for" * (precision == "int8")
        reason = str(error).removesuffix("; export the bundle again")
        raise InputError(f"{reason}; export at a higher precision{calibrate}") from None
    return tolerances


def _half(precision: Precision) -> Tolerances:
    """The bounds over `MARGIN`, however many are lost."""
    bound = BOUNDS[precision]
    halved = {
        name: Spread(each=getattr(bound, name).each / MARGIN, mean=getattr(bound, name).mean / MARGIN)
        for name in _QUANTITIES
    }
    return bound.model_copy(update={**halved, "lost": 1.0})


def _widened(spread: Spread) -> Spread:
    return Spread(each=_rounded(MARGIN * spread.each), mean=_rounded(MARGIN * spread.mean))


def _largest(spreads: list[Spread]) -> Spread:
    return Spread(each=max(each.each for each in spreads), mean=max(each.mean for each in spreads))


def _rounded(number: float) -> float:
    return float(f"{number:.2g}")
