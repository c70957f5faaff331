"""The outputs of a task's network: their kinds and units, and how a runtime turns them into results. numpy only.

Engines are compared, manifests written and results made by the kind of an output, never by a task's name. The manifest
has the same descriptions for runtimes in other languages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from perception.frame import Arrays
from perception.grid import BevGrid, VoxelGrid
from perception.io.section import Section

Kind = Literal["boxes", "raster", "labels", "value"]
DETECTIONS = ("boxes", "scores", "labels", "attributes")  # the outputs of kind `boxes`


class Area(Section):
    """Where cells are, in the frame of reference: columns along x, rows along y, levels along z, each ascending."""

    x: tuple[float, float]  # m
    y: tuple[float, float]
    z: tuple[float, float]
    cell: float  # m, along x and y
    height: float  # m, along z; 0: cells have no levels

    @staticmethod
    def of(grid: BevGrid | VoxelGrid) -> Area:
        height = grid.edges[2].item() if isinstance(grid, VoxelGrid) else 0.0
        return Area(x=grid.x, y=grid.y, z=grid.z, cell=grid.cell, height=height)


class Output(Section):
    """A tensor of a task's network, called TASK/NAME.

    Engines differ in labels where two classes are nearly equally probable. A label that depends on many cells differs
    whenever one of them is near its threshold, so the share that may differ is measured, but has no bound.

    Attributes:
        kind:
            boxes: one of `DETECTIONS`, which together are a list of detections.
            raster: (B, channels, ...) numbers of cells, voxels or points.
            labels: (B, ...) indices of classes, or numbers of a table that are chosen by a threshold.
            value: (B, channels) numbers of the whole frame.
        unit: of the numbers, and what they mean.
        names: of the channels; of labels, the classes by their index.
        scale: the size of ordinary numbers in `unit`; engines may differ in proportion. 1 for a probability.
        cells: of labels, whether each is of one cell or point.
        steady: engines in INT8 may be compared on frames unlike the training data, not the calibration's.
        area: where the cells of a raster or of labels are.
        result: name of the result; "": `name`; None: there is none, others use the output.
        squeeze: of a raster with one channel, whether the result has no channels.
        instead: of a raster or of numbers of a table, the result where the network gave no finite number; None: NaN.
        steps: of a raster of probabilities, the number of steps to which results are rounded; 0: they are not.
        nowhere: of labels, the output that is 0 where there is none, and the label that stands for none.
        groups: of a value, the sizes of its groups of probabilities; each group sums to 1.
        doubt: of a value with groups, the output with a number for each group, above which its probabilities become
            equal.
        suppression: of boxes, the settings of `detection.nms`; None: there is none.
        velocity: of boxes, whether their velocity is known.
    """

    name: str
    kind: Kind
    unit: str
    names: tuple[str, ...] = ()
    scale: float = 1.0
    cells: bool = True
    steady: bool = True
    area: Area | None = None
    result: str | None = ""
    squeeze: bool = False
    instead: float | None = None
    steps: int = 0
    nowhere: tuple[str, int] | None = None
    groups: tuple[int, ...] = ()
    doubt: tuple[str, float] | None = None
    suppression: dict[str, Any] | None = None
    velocity: bool = True


def decode(outputs: Sequence[Output], tensors: Arrays) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Results of one frame by their names, from its tensors, and the number of NaN and infinite numbers of an output.

    Detections stay a list of candidates; those with such a number get a score of -1, and count once, for the boxes.
    """
    finite = {each.name: np.isfinite(tensors[each.name]) for each in outputs}
    others = [each for each in outputs if each.kind != "boxes"]
    results, counts = _without_damaged(tensors, finite) if len(others) < len(outputs) else ({}, {})
    counts |= {each.name: int(np.count_nonzero(~finite[each.name])) for each in others if not finite[each.name].all()}
    for each in others:
        if each.result is None:
            continue
        found = tensors[each.name]
        if each.kind == "value":
            found = _value(each, tensors, counts)
        elif found.dtype.kind == "f" and each.name in counts:
            instead = np.nan if each.instead is None else each.instead
            found = np.where(finite[each.name], found, instead).astype(found.dtype)
        if each.steps:
            found = np.rint(found.clip(0, 1) * np.float32(each.steps)) / np.float32(each.steps)
        if each.nowhere is not None:
            place, none = each.nowhere
            found = np.where(tensors[place].reshape(found.shape) == 0, found.dtype.type(none), found)
        found = found[0] if each.squeeze else found
        results[each.result or each.name] = found
    return results, counts


def _without_damaged(tensors: Arrays, finite: Arrays) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    detections = {name: tensors[name] for name in DETECTIONS}
    damaged = ~(finite["boxes"].all(axis=-1) & finite["scores"])
    if not damaged.any():
        return detections, {}
    boxes = np.where(damaged[..., None], 0, tensors["boxes"])
    scores = np.where(damaged, -1, tensors["scores"])  # below every threshold
    return {**detections, "boxes": boxes, "scores": scores}, {"boxes": int(np.count_nonzero(damaged))}


def _value(output: Output, tensors: Arrays, damaged: Mapping[str, int]) -> np.ndarray:
    """(channels,) float64, or (0,) if a number that it depends on is not finite."""
    if not damaged.keys().isdisjoint({output.name, *(output.doubt or ())[:1]}):
        return np.zeros(0)
    values = tensors[output.name].astype(np.float64)
    if output.doubt is not None:
        name, limit = output.doubt
        for part, doubt in zip(np.split(values, np.cumsum(output.groups)[:-1]), tensors[name], strict=True):
            part[:] = 1 / len(part) if doubt > limit else part
    return values
