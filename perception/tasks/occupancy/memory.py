"""Occupancy fused over a drive. numpy only."""

from __future__ import annotations

import math
from collections.abc import Collection
from functools import cache

import numpy as np

from perception.frame import Frame
from perception.grid import BevGrid
from perception.tasks.moving_window import MovingWindow
from perception.tasks.occupancy.free_space import OCCUPIED, free_rays
from perception.tasks.occupancy.result import LEVELS, OccupancyResult, levels_of, probabilities_of
from perception.tasks.task import Memory
from perception.voxels import VoxelGrid

SCALE = 256  # log-odds are integers in units of 1 / SCALE
FRAME_LIMIT = 2.0  # of the log-odds that one frame adds
LIMIT = 4.0  # of their sum, so that what has gone is forgotten after a few frames
HALF_LIFE = 0.25  # s, in which the log-odds of a voxel that holds a moving class halve
REACH = 10.0  # m around the grid that are kept


@cache
def _evidence() -> np.ndarray:
    """(256,) int16 log-odds of the levels of a probability; 0 for an unknown one."""
    odds = np.zeros(256, np.int16)
    for level in range(LEVELS + 1):
        p = min(max(level / LEVELS, 0.5 / LEVELS), 1 - 0.5 / LEVELS)
        odds[level] = round(SCALE * min(max(math.log(p / (1 - p)), -FRAME_LIMIT), FRAME_LIMIT))
    return odds


@cache
def _probabilities() -> np.ndarray:
    """(2 SCALE LIMIT + 1,) float32 probabilities of the sums of log-odds from -LIMIT to LIMIT, as in a result."""
    most = round(SCALE * LIMIT)
    exact = np.array([1 / (1 + math.exp(-odds / SCALE)) for odds in range(-most, most + 1)], np.float32)
    return probabilities_of(levels_of(exact))


class FusedOccupancy(Memory[OccupancyResult]):
    """Memory whose state is the fused occupancy around the vehicle, on the grid of the results.

    Each voxel of a window that follows the vehicle sums the log-odds of being occupied (Thrun, Burgard & Fox,
    "Probabilistic Robotics", 2005, table 9.1) and keeps the class of the last frame in which it was occupied. Voxels of
    moving classes fade with HALF_LIFE, since what was there has gone on. Levels are heights above the ground under the
    vehicle.

    Args:
        grid: of the results.
        classes: number of classes; the last one is free space.
        moving: classes of things that move.
        solid: classes that stop the vehicle, for the free distances.
        body: levels of the grid at which they do.
    """

    def __init__(
        self, grid: VoxelGrid, classes: int, moving: Collection[int], solid: Collection[int], body: slice
    ) -> None:
        self.grid, self._free, self._body = grid, classes - 1, body
        self._moving, self._solid = (np.isin(np.arange(classes), list(each)) for each in (moving, solid))
        ground = BevGrid(grid.x, grid.y, grid.z, grid.cell, grid.reference)
        levels = grid.shape[0]
        self._window = MovingWindow(ground, {"odds": (levels, np.int16), "classes": (levels, np.uint8)}, REACH)
        self._time: int | None = None

    @property
    def bytes(self) -> int:
        """Size of the memory, the same for the whole drive."""
        return self._window.bytes

    def update(self, frame: Frame, result: OccupancyResult) -> OccupancyResult:
        pose = frame.global_from_reference
        self._fade(0.0 if self._time is None else max(0.0, (frame.timestamp - self._time) / 1e6))
        self._time = frame.timestamp
        covered, levels = self._window.follow(pose), self.grid.shape[0]
        says = np.zeros((levels, self._cells + 1), np.int16)  # the last one: nothing
        says[:, :-1] = _evidence()[levels_of(result.occupied).reshape(levels, -1)]
        shown = np.full((levels, self._cells + 1), self._free, np.uint8)
        with np.errstate(invalid="ignore"):
            shown[:, :-1] = np.where(result.occupied > OCCUPIED, result.classes, self._free).reshape(levels, -1)
        block = (slice(None), *covered.block)
        odds, classes = self._window.arrays["odds"][block], self._window.arrays["classes"][block]
        odds += says.take(covered.frame_cells, axis=1)
        most = round(SCALE * LIMIT)
        np.clip(odds, -most, most, out=odds)
        seen = shown.take(covered.frame_cells, axis=1)
        np.copyto(classes, seen, where=seen != self._free)
        return self._around(pose)

    @property
    def _cells(self) -> int:
        return self.grid.shape[1] * self.grid.shape[2]

    def _fade(self, seconds: float) -> None:
        odds, classes = self._window.arrays["odds"], self._window.arrays["classes"]
        moving = self._moving[classes]
        odds[moving] = np.rint(odds[moving] * 0.5 ** (seconds / HALF_LIFE)).astype(np.int16)

    def _around(self, pose: np.ndarray) -> OccupancyResult:
        index, inside = self._window.around(pose)
        odds, classes = (
            np.where(inside, self._window.arrays[name].reshape(self.grid.shape[0], -1).take(index, axis=1), nothing)
            for name, nothing in (("odds", 0), ("classes", self._free))
        )
        occupied = _probabilities()[odds.astype(np.int64) + round(SCALE * LIMIT)]
        there = odds > 0
        classes = np.where(there, classes, self._free).astype(np.uint8)
        blocked = (there & self._solid[classes])[self._body].any(axis=0)
        return OccupancyResult(classes, occupied, free_rays(self.grid).free(blocked), self.grid)
