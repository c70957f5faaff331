"""Drives whose LiDAR is damaged as sensors and drivers in the field are: `damaged_drives:TURNED=PATH` opens them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from perception.datasets.keyframes import Reads
from perception.datasets.sources import open_source
from perception.frame import Frame
from perception.rig import Rig
from perception.taxonomy import Taxonomy


class Damaged:
    """The drives at a path, with a change of the points (N, 5) in the frame of the reference LiDAR."""

    def __init__(
        self,
        change: Callable[[np.ndarray], np.ndarray],
        data: Path,
        version: str | None,
        rig: Rig | None,
        taxonomy: Taxonomy | None,
    ) -> None:
        self._change, self._source = change, open_source(data, version, rig, taxonomy)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def frame(self, token: str, reads: Reads) -> Frame:
        assert reads.reference == "lidar"
        frame = self._source.frame(token, reads)
        number = np.arange(len(frame.points), dtype=np.float32)
        changed = self._change(np.column_stack([frame.points, number]))
        kept = frame.select_points(changed[:, 5].astype(np.int64))
        return replace(kept, points=changed[:, :5].astype(np.float32))


def few_rings(points: np.ndarray) -> np.ndarray:
    """Every fourth ring of PandaSet's LiDAR: in a column of firings rings are apart, although its frame is tilted."""
    x, y, z = points[:, 0] - 0.81, points[:, 1], points[:, 2] - 1.85  # m: where the LiDAR is in its pose's frame
    column = np.floor(np.degrees(np.arctan2(y, x)) / 0.2)
    elevation = np.degrees(np.arctan2(z, np.hypot(x, y)))
    order = np.lexsort((elevation, column))
    new_column = np.diff(column[order], prepend=-999) > 0
    ring = np.cumsum(new_column | (np.diff(elevation[order], prepend=-999) > 0.08))
    lowest = np.maximum.accumulate(np.where(new_column, ring, 0))
    return points[order[(ring - lowest) % 4 == 0]]


def few_beams(points: np.ndarray) -> np.ndarray:
    """Every second beam of an HDL-32E, which are 4/3 degrees apart."""
    elevation = np.degrees(np.arctan2(points[:, 2], np.hypot(points[:, 0], points[:, 1])))
    return points[np.rint((elevation + 30.67) * 0.75) % 2 == 0]


def turn(degrees: float, points: np.ndarray) -> np.ndarray:
    """To the left, about the frame's z."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    x, y = points[:, :2].T
    return np.column_stack([c * x - s * y, s * x + c * y, points[:, 2:]])


def dead(points: np.ndarray) -> np.ndarray:
    """Nothing in 50 degrees to the left of the frame's x."""
    azimuth = np.degrees(np.arctan2(points[:, 1], points[:, 0]))
    return points[(azimuth < 60) | (azimuth > 110)]


LOW = partial(Damaged, lambda points: points - np.float32([0, 0, 0.5, 0, 0, 0]))
FEW_RINGS = partial(Damaged, few_rings)
FEW_BEAMS = partial(Damaged, few_beams)
UNSCALED = partial(Damaged, lambda points: points / np.float32([1, 1, 1, 255, 1, 1]))
TURNED = partial(Damaged, partial(turn, 90))
YAWED = partial(Damaged, partial(turn, 12))  # has no line of its own
SWAPPED = partial(Damaged, lambda points: points[:, [1, 0, 2, 3, 4, 5]])
SHIFTED = partial(Damaged, lambda points: points[:, [1, 2, 0, 3, 4, 5]])  # y z x for x y z
DEAD = partial(Damaged, dead)
EMPTY = partial(Damaged, lambda points: points[:0])
CAUSES = {  # what the line of a finding says
    "LOW": "the height of the ground",
    "FEW_RINGS": "the LiDAR has fewer beams",
    "FEW_BEAMS": "the LiDAR has fewer beams",
    "UNSCALED": "0 to 1 instead of 0 to 255",
    "TURNED": "turned by 90 degrees to the left",
    "SWAPPED": "x and y swapped",
    "SHIFTED": "the fields of the cloud have another order",
    "DEAD": "a sector is dead",
    "EMPTY": "comes in 0 of 2 frames",
}
