"""An FP32 graph at another precision: what goes into the bundle, and how exactly an engine must compute it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from deploy.bundle import CPU_ONNX, ONNX
from deploy.golden import differences
from deploy.manifest import Block, Precision
from deploy.precision.calibrate import Inputs, ranges
from deploy.precision.half import to_half
from deploy.precision.quantise import CPU, TENSORRT, Ranges, activations, quantise
from deploy.precision.sensitivity import blocks, error, run, sensitivity
from perception.errors import InputError

SENSITIVITY_FRAMES = 8  # of those for calibration, that the blocks are tried on

# Share of the numbers and detections of the golden frame that may be off by more than the tolerance: where two peaks
# score nearly the same, rounding decides which of them is one.
OUTLIERS: Mapping[Precision, float] = {"fp32": 0.0, "fp16": 0.02, "int8": 0.1}
# What rounding may change at most; a graph that is further off is taken for a wrong one.
LARGEST_CHANGE: Mapping[Precision, float] = {"fp32": 1e-4, "fp16": 0.02, "int8": 0.2}
MARGIN = 2.0  # of the tolerance over what was measured: engines round in different places
_CALIBRATION = ", or calibrate on drives that show all that the network was trained for"


@dataclass(frozen=True)
class Lowered:
    """The graphs of a bundle at one precision."""

    graphs: dict[str, onnx.ModelProto]  # by name of the file
    blocks: tuple[Block, ...] = ()  # of INT8: what became of each
    ranges: Ranges = field(default_factory=dict)  # of INT8: of the activations, as measured


def lower(model: onnx.ModelProto, precision: Precision, frames: Sequence[Inputs]) -> Lowered:
    """The graphs at this precision.

    Args:
        model: in FP32.
        frames: to measure the ranges of activations on; INT8 needs one or more.

    Raises:
        InputError: a weight beyond FP16.
    """
    if precision == "fp32":
        return Lowered({ONNX: model})
    if precision == "fp16":
        return Lowered({ONNX: to_half(model)})
    measured = ranges(model, activations(model.graph), frames)
    few = [frames[i] for i in np.linspace(0, len(frames) - 1, min(SENSITIVITY_FRAMES, len(frames))).astype(int)]
    table, members = sensitivity(model, measured, few), blocks(model.graph)
    layers = [layer for block in table if block.precision == "int8" for layer in members[block.name]]
    graphs = {name: quantise(model, layers, measured, of) for name, of in ((ONNX, TENSORRT), (CPU_ONNX, CPU))}
    for graph in graphs.values():
        require_recognition(model, graph, few)
    return Lowered(graphs, table, measured)


def require_recognition(model: onnx.ModelProto, lowered: onnx.ModelProto, frames: Sequence[Inputs]) -> None:
    """Raise InputError unless what a lowered graph recognises on recorded frames is what the FP32 graph does.

    The golden frame cannot tell: no drive looks like it, so a recogniser may waver there, and what wavers is
    thrown far by rounding.
    """
    if all(output.name != "recognised" for output in model.graph.output):
        return
    expected, actual = (
        [{"recognised": outputs["recognised"]} for outputs in run(graph, frames)] for graph in (model, lowered)
    )
    if (off := error(expected, actual)) > LARGEST_CHANGE["int8"]:
        raise InputError(
            f"int8 recognises other conditions than fp32 on the drives it was calibrated on (error {off:.2f}, at most "
            f"{LARGEST_CHANGE['int8']:g}); export at a higher precision{_CALIBRATION}"
        )


def tolerance(expected: Inputs, found: Sequence[Inputs], precision: Precision) -> tuple[float, float | None]:
    """How far outputs for the golden frame may be off: `MARGIN` times as far as these, which ONNX Runtime gave.

    Returns:
        The tolerance, and that of what INT8 recognises, which has no limit here (`require_recognition`); None where
        there is none of its own.

    Raises:
        InputError: they are off by more than `LARGEST_CHANGE`.
    """
    apart = math.inf if precision == "int8" and "recognised" in expected else None
    largest, change, outliers = LARGEST_CHANGE[precision], 1e-4, OUTLIERS[precision]
    for actual in found:
        while change < largest and differences(expected, actual, change, outliers, apart):
            change *= 1.1
        if problems := differences(expected, actual, min(change, largest), outliers, apart):
            raise InputError(
                f"the graph in {precision} does not compute the exported network (tolerance {largest:g}): "
                f"{'; '.join(problems)}; export at a higher precision{_CALIBRATION if precision == 'int8' else ''}"
            )
    allowed = float(f"{MARGIN * change:.2g}")
    if apart is None:
        return allowed, None
    off = max(float(np.abs(expected["recognised"] - actual["recognised"]).max()) for actual in found)
    return allowed, max(allowed, float(f"{MARGIN * off:.2g}"))
