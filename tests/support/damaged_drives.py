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
    """Every fourth ring from the lowest on: in a column of firings rings are apart, whatever the LiDAR's tilt."""
    x, y, z = points[:, 0] - RINGS_FROM[0], points[:, 1], points[:, 2] - RINGS_FROM[1]
    column = np.floor(np.degrees(np.arctan2(y, x)) / 0.2)
    elevation = np.degrees(np.arctan2(z, np.hypot(x, y)))
    order = np.lexsort((elevation, column))
    new_column = np.diff(column[order], prepend=-999) > 0
    new_ring = new_column | (np.diff(elevation[order], prepend=-999) > 0.08)
    ring = np.cumsum(new_ring)
    first = np.maximum.accumulate(np.where(new_column, ring, 0))
    return points[order[(ring - first) % 4 == 0]]


def turned(points: np.ndarray) -> np.ndarray:
    return np.column_stack([-points[:, 1], points[:, 0], points[:, 2:]])


def dead(points: np.ndarray) -> np.ndarray:
    """Nothing in 50 degrees to the left of the frame's x."""
    azimuth = np.degrees(np.arctan2(points[:, 1], points[:, 0]))
    return points[(azimuth < 60) | (azimuth > 110)]


RINGS_FROM = (0.81, 1.85)  # m, x and z of PandaSet's LiDAR in its pose's frame
LOW = partial(Damaged, lambda points: points - np.float32([0, 0, 0.5, 0, 0, 0]))
FEW_RINGS = partial(Damaged, few_rings)
UNSCALED = partial(Damaged, lambda points: points / np.float32([1, 1, 1, 255, 1, 1]))
TURNED = partial(Damaged, turned)
SWAPPED = partial(Damaged, lambda points: points[:, [1, 0, 2, 3, 4, 5]])
SHIFTED = partial(Damaged, lambda points: points[:, [1, 2, 0, 3, 4, 5]])  # y z x for x y z
DEAD = partial(Damaged, dead)
