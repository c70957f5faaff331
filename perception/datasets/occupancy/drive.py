"""Gathers what the LiDARs measured over a drive: the static world, every object that moves, and the space between.

As Occ3D (Tian et al., NeurIPS 2023, section 3) and SurroundOcc (Wei et al., ICCV 2023, section 4) describe: points in
the annotated boxes of an object are gathered in the object's own frame, the rest in the global frame.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np

from perception.datasets.keyframes import Keyframes, Reads
from perception.datasets.occupancy.returns import (
    UNKNOWN,
    Assigned,
    Movable,
    Returns,
    motion_between,
    move_points,
    returns_of,
)
from perception.frame import Boxes, Frame
from perception.grid import VoxelGrid, traverse

CELL = 0.1  # m, of which one point of each class is kept
_HEIGHT = 8.0  # m above and below a LiDAR that its rays are followed
_ROUNDED = 1e-4  # s, far more than ages in float32 are off
_COLUMN = 0.5  # m, of the ground
_NEAR, _HIGH = 20.0, 1.0  # m from the vehicle, and from the height of its wheels, that the ground is sought
_ENOUGH = 50  # columns that two keyframes must share
_BUFFER = 1 << 20  # points, before they are thinned
_SIDE = 16  # voxels along an edge of a brick


class Levels:
    """How far each keyframe of a drive must be raised, so that all are on the same ground as the first.

    The poses of nuScenes have no height: z is 0 all along, although the vehicle drives up and down hills. The lowest
    points of columns that a keyframe shares with the one before tell the difference; its median does not depend on
    what moves.
    """

    def __init__(self) -> None:
        self._before = (np.zeros(0, np.int64), np.zeros(0))
        self._height = 0.0

    def next(self, returns: Returns, global_from_ego: np.ndarray) -> float:
        """m to add to z of all that is measured at the next keyframe."""
        keys, lowest = _find_ground(returns.points, global_from_ego)
        _, here, there = np.intersect1d(keys, self._before[0], assume_unique=True, return_indices=True)
        if len(here) >= _ENOUGH:
            self._height -= float(np.median(lowest[here] - self._before[1][there]))
        self._before = keys, lowest
        return self._height


def _find_ground(points: np.ndarray, global_from_ego: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(C,) keys of the columns around the vehicle, ascending, and (C,) z of the lowest point in each, m."""
    x, y, z = move_points(points, np.linalg.inv(global_from_ego)).T
    points = points[(np.hypot(x, y) < _NEAR) & (np.abs(z) < _HIGH)]
    points = points[np.argsort(points[:, 2], kind="stable")]
    column, row = np.floor(points[:, :2] / _COLUMN).astype(np.int64).T
    keys, first = np.unique((column << 32) + row, return_index=True)
    return keys, points[first, 2]


class ThinnedCloud:
    """One point, the first, for each class in each cell of a regular grid, and how many it stands for.

    Args:
        cell: m, edge length of a cell.
        anchor: (3,) m, near the points, for points that are stored in float32.
    """

    def __init__(self, cell: float, anchor: np.ndarray) -> None:
        self._cell, self._anchor = cell, anchor
        self._kept = (np.zeros((0, 3), np.float32), np.zeros(0, np.int16), np.zeros(0, np.int64))
        self._new: list[tuple[np.ndarray, np.ndarray]] = []
        self._waiting = 0

    def add(self, points: np.ndarray, classes: np.ndarray) -> None:
        """points (N, 3) m, classes (N,) int."""
        self._new.append(((points - self._anchor).astype(np.float32), classes.astype(np.int16)))
        self._waiting += len(points)
        if self._waiting > max(_BUFFER, len(self._kept[0])):  # so that all thinning together takes n log n
            self._thin()

    def content(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(N, 3) float64 points (m), (N,) int16 classes, (N,) int64 how many points each stands for."""
        self._thin()
        points, classes, counts = self._kept
        return points.astype(np.float64) + self._anchor, classes, counts

    def _thin(self) -> None:
        if not self._waiting:
            return
        points = np.concatenate([self._kept[0], *(points for points, _ in self._new)])
        classes = np.concatenate([self._kept[1], *(classes for _, classes in self._new)])
        counts = np.concatenate([self._kept[2], np.ones(self._waiting, np.int64)])
        kinds = int(np.ptp(classes)) + 1
        key = cell_keys(points.astype(np.float64), self._cell) * kinds + (classes - classes.min())
        _, first, number = np.unique(key, return_index=True, return_inverse=True)
        total = np.bincount(number.reshape(-1), counts, len(first)).astype(np.int64)
        order = np.argsort(first)
        self._kept = points[first[order]], classes[first[order]], total[order]
        self._new, self._waiting = [], 0


def cell_keys(points: np.ndarray, cell: float) -> np.ndarray:
    """(N,) int64, equal for points (N, 3) m that are in the same cell of a regular grid; N > 0."""
    place = np.floor(points / cell).astype(np.int64)
    place -= place.min(axis=0)
    _, rows, levels = (place.max(axis=0) + 1).tolist()
    return np.asarray((place[:, 0] * rows + place[:, 1]) * levels + place[:, 2])


class CrossedVoxels:
    """Which voxels of an unbounded grid rays have crossed before they ended.

    The voxels are kept in bricks, so that the memory grows with the space that was seen. A ray is followed while it is
    within the reach of the LiDAR.

    Args:
        cell: m, edge length of a voxel.
        reach: (3,) m from the LiDAR along each axis, at least.
    """

    def __init__(self, cell: float, reach: tuple[float, float, float]) -> None:
        self._brick, self._cell, self._reach = cell * _SIDE, cell, np.array(reach)
        self._bricks: dict[tuple[int, ...], np.ndarray] = {}  # x y z -> (16, 16, 16) bool by level, row, column

    def add(self, origins: np.ndarray, ends: np.ndarray) -> None:
        """Rays from origins (N, 3), which are near each other, to ends (N, 3), m."""
        low = np.floor((origins.min(axis=0) - self._reach) / self._brick).astype(np.int64)
        high = np.floor((origins.max(axis=0) + self._reach) / self._brick).astype(np.int64) + 1
        x, y, z = ((float(a), float(b)) for a, b in zip(low * self._brick, high * self._brick, strict=True))
        grid = VoxelGrid(x, y, z, self._cell)
        crossed = np.zeros(grid.shape, bool)
        mark_crossed(crossed.reshape(-1), grid, origins, ends)
        columns, rows, levels = high - low  # of bricks
        blocks = crossed.reshape(levels, _SIDE, rows, _SIDE, columns, _SIDE).transpose(4, 2, 0, 1, 3, 5)
        for place in np.argwhere(blocks.any(axis=(3, 4, 5))):
            block, name = blocks[tuple(place)], tuple((low + place).tolist())
            if name in self._bricks:
                self._bricks[name] |= block
            else:
                self._bricks[name] = block.copy()

    def at(self, points: np.ndarray) -> np.ndarray:
        """(N,) bool: whether the voxel that a point (N, 3) m is in was crossed."""
        voxel = np.floor(points / self._cell).astype(np.int64)
        brick = voxel // _SIDE
        low, high = brick.min(axis=0), brick.max(axis=0) + 1
        dense = np.zeros((*(high - low), _SIDE, _SIDE, _SIDE), bool)
        for place in product(*(range(size) for size in dense.shape[:3])):
            found = self._bricks.get(tuple((low + place).tolist()))
            if found is not None:
                dense[place] = found
        (i, j, k), (column, row, level) = (brick - low).T, (voxel % _SIDE).T
        return np.asarray(dense[i, j, k, level, row, column])


def mark_crossed(crossed: np.ndarray, grid: VoxelGrid, origins: np.ndarray, ends: np.ndarray) -> None:
    """Set those of the flat voxels (V,) bool that a ray crosses before the voxel that it ends in."""
    last, inside = grid.indices(ends)
    last[~inside] = -1
    for rays, voxels in traverse(origins, ends, grid):
        crossed[voxels[voxels != last[rays]]] = True


@dataclass
class Drive:
    """What was measured on one drive.

    Points of objects are in the frames of their boxes. All else is in the global frame, with each keyframe raised to
    the ground of the first.
    """

    static: ThinnedCloud
    crossed: CrossedVoxels
    objects: dict[str, ThinnedCloud] = field(default_factory=dict)  # by the object's id
    annotated: bool = False  # whether some points have annotated classes
    heights: dict[str, float] = field(default_factory=dict)  # keyframe -> m that it is raised

    def global_from_ego(self, frame: Frame) -> np.ndarray:
        """(4, 4) raised pose of the vehicle at a keyframe."""
        pose = frame.global_from_ego.copy()
        pose[2, 3] += self.heights[frame.token]
        return pose


def gather(
    source: Keyframes, samples: Sequence[str], sweeps: int, grid: VoxelGrid, advance: Callable[[], None] = lambda: None
) -> Drive | None:
    """What was measured at keyframes of one drive and in earlier sweeps; None if no LiDAR has a file.

    Args:
        sweeps: number of earlier sweeps to read with each keyframe; those before the last keyframe are left out.
    """
    movable, levels, drive = Movable(source), Levels(), None
    before: tuple[int, Boxes] | None = None
    begun, height = np.full(256, -np.inf), 0.0
    for sample in samples:
        boxes, frame = movable.boxes(sample), source.frame(sample, Reads(sweeps=sweeps, cameras=False))
        time = frame.timestamp
        if frame.points is not None:
            drive = drive or _empty(grid, frame.global_from_ego[:3, 3])
            seconds = 1e-6 * (time - before[0]) if before else 1.0
            motion = motion_between(before[1] if before else Boxes.none(), boxes, seconds)
            returns = returns_of(frame, source, sweeps)
            returns = _not_measured(returns, 1e-6 * time, begun)
            assigned = movable.assign(returns, motion, seconds)
            drive.heights[sample] = levels.next(returns.select(returns.own), frame.global_from_ego)
            raised = returns.raised(height + assigned.shares * (drive.heights[sample] - height))
            _add(drive, raised, assigned, motion.end, grid)
            height = drive.heights[sample]
        before = time, boxes
        advance()
    return drive


def _not_measured(returns: Returns, now: float, begun: np.ndarray) -> Returns:
    """The returns of the keyframe, and of earlier sweeps that began after the last keyframe's.

    Args:
        now: s, time of the keyframe.
        begun: (256,) s, when the last keyframe's sweep of each LiDAR began; overwritten with this keyframe's.
    """
    sweep = returns.lidars.astype(np.int64) * 256 + returns.sweeps
    oldest = np.full(1 << 16, -np.inf)
    np.maximum.at(oldest, sweep, returns.ages)
    begin, own = now - oldest[sweep], returns.own
    new = own | (begin > begun[returns.lidars] + _ROUNDED)
    begun[returns.lidars[own]] = begin[own]
    return returns.select(new)


def _empty(grid: VoxelGrid, anchor: np.ndarray) -> Drive:
    reach = float(np.hypot(np.abs(grid.x).max(), np.abs(grid.y).max()))  # however the vehicle turns
    return Drive(ThinnedCloud(CELL, anchor), CrossedVoxels(grid.cell, (reach, reach, _HEIGHT)))


def _add(drive: Drive, returns: Returns, assigned: Assigned, boxes: Boxes, grid: VoxelGrid) -> None:
    if len(returns.points):  # one ray for each half voxel: others cross the same ones
        _, chosen = np.unique(cell_keys(returns.points, grid.cell / 2), return_index=True)
        drive.crossed.add(returns.origins[chosen], returns.points[chosen])
    drive.annotated |= bool((returns.classes != UNKNOWN).any())
    drive.static.add(returns.points[assigned.static], assigned.classes[assigned.static])
    for n, name in enumerate(boxes.instances.tolist()):
        mine = assigned.owner == n
        if name and mine.any():
            cloud = drive.objects.setdefault(name, ThinnedCloud(CELL, np.zeros(3)))
            cloud.add(assigned.local[mine], assigned.classes[mine])
