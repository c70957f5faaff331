"""An FP32 graph at another precision: what goes into the bundle, and how exactly an engine must compute it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from deploy.bundle import CPU_ONNX, ONNX
from deploy.manifest import Block
from deploy.precision.calibrate import Inputs, ranges
from deploy.precision.half import to_half
from deploy.precision.quantise import CPU, TENSORRT, Ranges, activations, quantise
from deploy.precision.sensitivity import blocks, error, run, sensitivity, together
from deploy.tolerances import Precision
from perception.errors import InputError

SENSITIVITY_FRAMES = 8  # of those for calibration, that the blocks are tried on

LARGEST_CHANGE = 0.2  # of what INT8 recognises, as `sensitivity.error` counts; one further off is taken for a wrong one
LARGEST_TOGETHER = 0.5  # of the maps that detections and the map are decoded from, counted likewise
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
        InputError: a weight beyond FP16, or INT8 is too far off on these frames.
    """
    if precision == "fp32":
        return Lowered({ONNX: model})
    if precision == "fp16":
        return Lowered({ONNX: to_half(model)})
    measured = ranges(model, activations(model.graph), frames)
    few = [frames[i] for i in np.linspace(0, len(frames) - 1, min(SENSITIVITY_FRAMES, len(frames))).astype(int)]
    table, members = sensitivity(model, measured, few), blocks(model.graph)
    layers = [layer for block in table if block.precision == "int8" for layer in members[block.name]]
    graphs = {}
    for name, layout in ((ONNX, TENSORRT), (CPU_ONNX, CPU)):
        if (off := together(model, layers, measured, few, layout)) > LARGEST_TOGETHER:
            raise InputError(
                f"int8 perceives something else than fp32 on the drives it was calibrated on (error {off:.2f}, at most "
                f"{LARGEST_TOGETHER:g}); export at a higher precision{_CALIBRATION}"
            )
        graphs[name] = quantise(model, layers, measured, layout)
        require_recognition(model, graphs[name], few)
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
    if (off := error(expected, actual)) > LARGEST_CHANGE:
        raise InputError(
            f"int8 recognises other conditions than fp32 on the drives it was calibrated on (error {off:.2f}, at most "
            f"{LARGEST_CHANGE:g}); export at a higher precision{_CALIBRATION}"
        )
