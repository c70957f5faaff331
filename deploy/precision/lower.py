"""An FP32 graph at another precision: what goes into the bundle, and how exactly an engine must compute it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from deploy.bundle import CPU_ONNX, ONNX
from deploy.golden import differences, require_agreement
from deploy.manifest import Block, Precision
from deploy.precision.calibrate import Inputs, ranges
from deploy.precision.half import to_half
from deploy.precision.quantise import CPU, TENSORRT, Ranges, activations, quantise
from deploy.precision.sensitivity import blocks, sensitivity

SENSITIVITY_FRAMES = 8  # of those for calibration, that the blocks are tried on

# Share of the numbers and detections of the golden frame that may be off by more than the tolerance: where two peaks
# score nearly the same, rounding decides which of them is one.
OUTLIERS: Mapping[Precision, float] = {"fp32": 0.0, "fp16": 0.02, "int8": 0.1}
# What rounding may change at most; a graph that is further off is taken for a wrong one.
LARGEST_CHANGE: Mapping[Precision, float] = {"fp32": 1e-4, "fp16": 0.02, "int8": 0.2}
MARGIN = 2.0  # of the tolerance over what was measured: engines round in different places


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
    return Lowered(graphs, table, measured)


def tolerance(expected: Inputs, found: Iterable[Inputs], precision: Precision) -> float:
    """How far outputs for the golden frame may be off: `MARGIN` times as far as these, which ONNX Runtime gave.

    Raises:
        InputError: they are off by more than `LARGEST_CHANGE`.
    """
    largest, change = LARGEST_CHANGE[precision], 1e-4
    for actual in found:
        while change < largest and differences(expected, actual, change, OUTLIERS[precision]):
            change *= 1.1
        require_agreement(expected, actual, min(change, largest), f"the graph in {precision}", OUTLIERS[precision])
    return float(f"{MARGIN * change:.2g}")
