"""Convert an FP32 graph to the graphs of a bundle at another precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

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
from perception.tasks.task import Task

SENSITIVITY_FRAMES = 8  # of those for calibration, that the blocks are tried on

LARGEST_CHANGE = 0.2  # of an output that is not steady, as `sensitivity.error` counts
LARGEST_TOGETHER = 0.5  # of the maps that detections and the map are decoded from, counted likewise
_CALIBRATION = ", or calibrate on drives that show all that the network was trained for"


@dataclass(frozen=True)
class Lowered:
    """The graphs of a bundle at one precision."""

    graphs: dict[str, onnx.ModelProto]  # by name of the file
    blocks: tuple[Block, ...] = ()  # of INT8: what became of each
    ranges: Ranges = field(default_factory=dict)  # of INT8: of the activations, as measured


def lower(
    model: onnx.ModelProto, precision: Precision, frames: Sequence[Inputs], tasks: Mapping[str, Task[Any]]
) -> Lowered:
    """The graphs at this precision.

    Args:
        model: in FP32.
        frames: to measure the ranges of activations on; INT8 needs one or more.
        tasks: of the network.

    Raises:
        InputError: a weight beyond FP16, or INT8 is too far off on these frames.
    """
    if precision == "fp32":
        return Lowered({ONNX: model})
    if precision == "fp16":
        return Lowered({ONNX: to_half(model)})
    measured = ranges(model, activations(model.graph), frames)
    few = [frames[i] for i in np.linspace(0, len(frames) - 1, min(SENSITIVITY_FRAMES, len(frames))).astype(int)]
    early = [f"{name}/{each.name}" for name, task in tasks.items() if task.reads == "fused" for each in task.outputs]
    table, members = sensitivity(model, measured, few, early), blocks(model.graph)
    layers = [layer for block in table if block.precision == "int8" for layer in members[block.name]]
    graphs = {}
    for name, layout in ((ONNX, TENSORRT), (CPU_ONNX, CPU)):
        if (off := together(model, layers, measured, few, layout, early)) > LARGEST_TOGETHER:
            raise InputError(
                f"int8 perceives something else than fp32 on the drives it was calibrated on (error {off:.2f}, at most "
                f"{LARGEST_TOGETHER:g}); export at a higher precision{_CALIBRATION}"
            )
        graphs[name] = quantise(model, layers, measured, layout)
        require_unsteady(model, graphs[name], few, tasks)
    return Lowered(graphs, table, measured)


def require_unsteady(
    model: onnx.ModelProto, converted: onnx.ModelProto, frames: Sequence[Inputs], tasks: Mapping[str, Task[Any]]
) -> None:
    """Raise InputError unless a converted graph gives the outputs that are not `steady` as the FP32 graph does.

    They are compared on recorded frames. The golden frames look like no drive, so a classifier may be undecided there,
    and then rounding changes its output much.
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
                f"int8 gives other {name} than fp32 on the drives it was calibrated on (error {off:.2f}, at most "
                f"{LARGEST_CHANGE:g}); export at a higher precision{_CALIBRATION}"
            )
