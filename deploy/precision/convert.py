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
from deploy.precision.sensitivity import blocks, combined_error, error, run, sensitivity
from deploy.tolerances import Precision
from perception.errors import InputError
from perception.tasks.task import Task

SENSITIVITY_FRAMES = 8  # calibration frames on which the blocks are tested

LARGEST_CHANGE = 0.2  # `sensitivity.error` of an output that is not steady
LARGEST_TOGETHER = 0.5  # `sensitivity.error` of the maps that detections and the map are decoded from
_CALIBRATION = ", or calibrate on drives that show all that the network was trained for"


@dataclass(frozen=True)
class ConvertedGraphs:
    """The graphs of a bundle at one precision."""

    graphs: dict[str, onnx.ModelProto]  # by name of the file
    blocks: tuple[Block, ...] = ()  # INT8: precision and error of each block
    ranges: Ranges = field(default_factory=dict)  # INT8: measured ranges of the activations


def convert(
    model: onnx.ModelProto, precision: Precision, frames: Sequence[Inputs], tasks: Mapping[str, Task[Any]]
) -> ConvertedGraphs:
    """Convert an FP32 graph to this precision.

    Args:
        frames: inputs to measure the ranges of activations on; INT8 needs one or more.
        tasks: the network's tasks by name.

    Raises:
        InputError: a weight is beyond the range of FP16, or INT8 differs too much on these frames.
    """
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
        if not each.labels
    ]
    # The distance from the training data weighs features by how little they vary, so rounded ones are far from it.
    exact = [f"{part}.{name}" for name, task in tasks.items() if task.reads == "inputs" for part in ("heads", "added")]
    table, members = sensitivity(model, measured, few, trunk_outputs, exact), blocks(model.graph)
    layers = [layer for block in table if block.precision == "int8" for layer in members[block.name]]
    graphs = {}
    for name, layout in ((ONNX, TENSORRT), (CPU_ONNX, CPU)):
        if (off := combined_error(model, layers, measured, few, layout, trunk_outputs)) > LARGEST_TOGETHER:
            raise InputError(
                f"int8 differs too much from fp32 on the drives it was calibrated on (error {off:.2f}, at most "
                f"{LARGEST_TOGETHER:g}); export at a higher precision{_CALIBRATION}"
            )
        graphs[name] = quantise(model, layers, measured, layout)
        require_close_outputs(model, graphs[name], few, tasks)
    return ConvertedGraphs(graphs, table, measured)


def require_close_outputs(
    model: onnx.ModelProto, converted: onnx.ModelProto, frames: Sequence[Inputs], tasks: Mapping[str, Task[Any]]
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
