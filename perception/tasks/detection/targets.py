"""What the detection head should say at each cell, from annotated boxes (CenterPoint, Yin et al., 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from perception.config import DetectionHead
from perception.frame import CLASSES, Boxes
from perception.grid import BevGrid


@dataclass(frozen=True)
class DetectionTargets:
    """For B frames with at most N objects each; padded objects have `real` False."""

    heatmap: Tensor  # (B, 10, rows, columns) float32: 1 at an object's cell, a Gaussian around it
    cells: Tensor  # (B, N) int64: row * columns + column of each object
    groups: Tensor  # (B, N) int64: in which of the head's groups each object's class is
    real: Tensor  # (B, N) bool
    regression: dict[str, Tensor]  # (B, N, n) float32 under the names of heads.detection.REGRESSION; NaN if unknown
    attributes: Tensor  # (B, N) int64; -1 where there is none

    def to(self, device: torch.device) -> DetectionTargets:
        """The same targets on another device."""
        return DetectionTargets(
            self.heatmap.to(device),
            self.cells.to(device),
            self.groups.to(device),
            self.real.to(device),
            {name: value.to(device) for name, value in self.regression.items()},
            self.attributes.to(device),
        )


def gaussian_radius(length: np.ndarray, width: np.ndarray, overlap: float = 0.1) -> np.ndarray:
    """How far (cells) the corners of a box of length x width cells may move for the IoU to stay above `overlap`.

    The smallest of the three cases of CornerNet (Law and Deng, 2018, section 3.2): the box is shifted, shrunk or
    grown by the radius along both axes. Each is the root of a quadratic equation.
    """
    total, area = length + width, length * width
    shifted = (total - np.sqrt(total**2 - 4 * area * (1 - overlap) / (1 + overlap))) / 2
    shrunk = (total - np.sqrt(total**2 - 4 * area * (1 - overlap))) / 4
    grown = (-total + np.sqrt(total**2 + 4 * area * (1 - overlap) / overlap)) / 4
    return np.minimum(np.minimum(shifted, shrunk), grown)


def _draw(heatmap: np.ndarray, row: int, column: int, radius: int) -> None:
    """Raise the map (rows, columns) to a Gaussian with its peak of 1 at the cell."""
    rows, columns = heatmap.shape
    sigma = (2 * radius + 1) / 6
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    bell = np.exp(-(x * x + y * y) / (2 * sigma * sigma)).astype(np.float32)
    top, bottom = max(row - radius, 0), min(row + radius + 1, rows)
    left, right = max(column - radius, 0), min(column + radius + 1, columns)
    part = heatmap[top:bottom, left:right]
    bell = bell[top - row + radius : bottom - row + radius, left - column + radius : right - column + radius]
    np.maximum(part, bell, out=part)


def detection_targets(batch: Sequence[Boxes], grid: BevGrid, head: DetectionHead) -> DetectionTargets:
    """Targets on the head's grid for each frame's boxes (in the grid's reference frame).

    Objects outside the grid, and those that no LiDAR or radar point hit, are left out, as the evaluation does.
    """
    rows, columns = grid.shape
    group_of_class = np.repeat(np.arange(len(head.groups)), [len(group) for group in head.groups])
    heatmap = np.zeros((len(batch), len(CLASSES), rows, columns), np.float32)
    kept = []
    for frame, boxes in enumerate(batch):
        place = grid.continuous(boxes.centers)
        inside = ((place >= 0) & (place < (columns, rows))).all(axis=1) & (boxes.num_points != 0)
        boxes = boxes.select(inside)
        kept.append(boxes)
        cells = grid.continuous(boxes.centers).astype(np.int64)
        radii = gaussian_radius(boxes.sizes[:, 1] / grid.cell, boxes.sizes[:, 0] / grid.cell)
        radii = np.maximum(radii.astype(np.int64), head.min_radius)
        for (column, row), radius, label in zip(cells, radii, boxes.labels, strict=True):
            _draw(heatmap[frame, label], row, column, radius)

    most = max(max((len(b) for b in kept), default=0), 1)

    def padded(arrays: list[np.ndarray], fill: float, dtype: type) -> Tensor:
        result: np.ndarray = np.full((len(arrays), most, *arrays[0].shape[1:]), fill, dtype)
        for i, array in enumerate(arrays):
            result[i, : len(array)] = array
        return torch.from_numpy(result)

    places = [grid.continuous(b.centers) for b in kept]
    flat = [p.astype(np.int64) @ np.array([1, columns]) for p in places]
    regression = {
        "offset": [p - np.floor(p) for p in places],
        "height": [b.centers[:, 2:3] for b in kept],
        "size": [np.log(b.sizes) for b in kept],
        "heading": [np.stack([np.sin(b.yaws), np.cos(b.yaws)], axis=-1) for b in kept],
        "velocity": [b.velocities[:, :2] for b in kept],
    }
    return DetectionTargets(
        heatmap=torch.from_numpy(heatmap),
        cells=padded(flat, 0, np.int64),
        groups=padded([group_of_class[b.labels] for b in kept], 0, np.int64),
        real=padded([np.ones(len(b)) for b in kept], 0, np.bool_),
        regression={name: padded(values, np.nan, np.float32) for name, values in regression.items()},
        attributes=padded([b.attributes for b in kept], -1, np.int64),
    )
