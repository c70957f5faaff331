"""Occupancy fused over a drive. numpy only."""

from __future__ import annotations

import math
from collections.abc import Collection
from functools import cache

import numpy as np

from perception.frame import Frame
from perception.grid import BevGrid, VoxelGrid
from perception.tasks.moving_window import Covered, MovingWindow
from perception.tasks.occupancy.rays import OCCUPIED, make_free_rays
from perception.tasks.occupancy.result import LEVELS, UNKNOWN, OccupancyResult, levels_of, probabilities_of
from perception.tasks.task import Memory

SCALE = 256  # log-odds are integers in units of 1 / SCALE
LIMIT = 4.0  # of the log-odds of a frame
FRAMES = 3  # that earlier frames count for at most, so that what has gone is forgotten after as many
HALF_LIFE = 0.25  # s, in which the log-odds of a voxel that holds a moving class halve
PROBABILITIES = ("occupied", "others")  # of a result, whose log-odds are averaged
REACH = 10.0  # m around the grid that are kept


@cache
def _evidence() -> np.ndarray:
    """(256,) int16 log-odds of the levels of a probability; 0 for an unknown one."""
    odds = np.zeros(256, np.int16)
    for level in range(LEVELS + 1):
        p = min(max(level / LEVELS, 0.5 / LEVELS), 1 - 0.5 / LEVELS)
        odds[level] = round(SCALE * min(max(math.log(p / (1 - p)), -LIMIT), LIMIT))
    return odds


@cache
def _probabilities() -> np.ndarray:
    """(2 SCALE LIMIT + 1,) float32 probabilities of log-odds from -LIMIT to LIMIT, as in a result."""
    most = round(SCALE * LIMIT)
    exact = np.array([1 / (1 + math.exp(-odds / SCALE)) for odds in range(-most, most + 1)], np.float32)
    return probabilities_of(levels_of(exact))


class FusedOccupancy(Memory[OccupancyResult]):
    """Memory whose state is the fused occupancy around the vehicle, on the grid of the results.

    Each voxel of a window that follows the vehicle holds the means of the frames' log-odds of being occupied, and of
    the class others, and the class of the last frame in which it was occupied. Frames repeat each other's errors, so
    their log-odds are not summed; the logarithmic score of a mean is at least the mean of the frames' scores. A voxel
    in which the memory or the frame has one of the `moving` classes takes the newest frame alone, and fades with
    HALF_LIFE without one. Levels are heights above the ground under the vehicle. `solid` classes at the levels of the
    body stop the vehicle, for the free distances.
    """

    def __init__(
        self, grid: VoxelGrid, classes: int, moving: Collection[int], solid: Collection[int], body: slice
    ) -> None:
        self.grid, self._free, self._body = grid, classes - 1, body
        self._moving, self._solid = (np.isin(np.arange(classes), list(each)) for each in (moving, solid))
        ground = BevGrid(grid.x, grid.y, grid.z, grid.cell, grid.reference)
        levels = grid.shape[0]
        odds: dict[str, tuple[int, type[np.generic]]] = dict.fromkeys(PROBABILITIES, (levels, np.int16))
        counts: dict[str, tuple[int, type[np.generic]]] = dict.fromkeys(("classes", "frames"), (levels, np.uint8))
        self._window = MovingWindow(ground, {**odds, **counts}, REACH)
        self._time: int | None = None

    def update(self, frame: Frame, result: OccupancyResult | None) -> OccupancyResult:
        pose = frame.global_from_reference
        self._fade(0.0 if self._time is None else max(0.0, (frame.timestamp - self._time) / 1e6))
        self._time = frame.timestamp
        covered = self._window.follow(pose)
        if result is not None:
            self._add(result, covered)
        return self._around(pose)

    def _add(self, result: OccupancyResult, covered: Covered) -> None:
        """Add a frame to the means where it has both probabilities."""
        frame = {name: covered.of_frame(levels_of(getattr(result, name)), UNKNOWN) for name in PROBABILITIES}
        known = np.all([levels != UNKNOWN for levels in frame.values()], axis=0)
        with np.errstate(invalid="ignore"):
            shown = np.where(result.occupied > OCCUPIED, result.classes, np.uint8(self._free))
        seen = covered.of_frame(shown, self._free)
        classes, frames = (self._window.arrays[name][covered.block] for name in ("classes", "frames"))
        moving = known & (self._moving[classes] | self._moving[seen])
        frames[moving] = 0
        for name, levels in frame.items():
            odds = self._window.arrays[name][covered.block]
            change = (_evidence()[levels] - odds) / (frames + np.float32(1))
            odds += np.rint(change * known).astype(np.int16)
        np.minimum(frames + known, FRAMES, out=frames)
        np.copyto(classes, seen, where=moving | (seen != self._free))

    def _fade(self, seconds: float) -> None:
        moving = self._moving[self._window.arrays["classes"]]
        for name in PROBABILITIES:
            odds = self._window.arrays[name]
            odds[moving] = np.rint(odds[moving] * 0.5 ** (seconds / HALF_LIFE)).astype(np.int16)

    def _around(self, pose: np.ndarray) -> OccupancyResult:
        around = self._window.around(pose)
        occupied, others, classes = (around[name] for name in (*PROBABILITIES, "classes"))
        there = occupied > 0
        classes = np.where(there, classes, self._free).astype(np.uint8)
        blocked = (there & self._solid[classes])[self._body].any(axis=0)
        occupied, others = (_probabilities()[odds + np.int64(round(SCALE * LIMIT))] for odds in (occupied, others))
        return OccupancyResult(classes, occupied, others, make_free_rays(self.grid).free(blocked), self.grid)
