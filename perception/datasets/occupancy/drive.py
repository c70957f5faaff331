"""Gathers what the LiDARs measured over a drive: the static world, every object that moves, and the space between.

As Occ3D (Tian et al., NeurIPS 2023, section 3) and SurroundOcc (Wei et al., ICCV 2023, section 4) describe: points in
the annotated boxes of an object are gathered in the object's own frame, the rest in the global frame. numpy only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from perception.datasets.keyframes import Keyframes, Reads
from perception.datasets.occupancy.crossed_voxels import CrossedVoxels
from perception.datasets.occupancy.levels import Levels
from perception.datasets.occupancy.movable import Assigned, Movable
from perception.datasets.occupancy.objects import motion_between
from perception.datasets.occupancy.returns import UNKNOWN, Returns, returns_of
from perception.datasets.occupancy.thinned_cloud import ThinnedCloud, cell_keys
from perception.frame import Boxes, Frame
from perception.voxels import VoxelGrid

CELL = 0.1  # m, of which one point of each class is kept
_HEIGHT = 8.0  # m above and below a LiDAR that its rays are followed
_ROUNDED = 1e-4  # s, far more than ages in float32 are off


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
        samples: in order of time.
        sweeps: number of earlier sweeps to read with each keyframe; those before the last keyframe are left out.
        grid: for which it is gathered.
        advance: called after each keyframe.

    Raises:
        InputError: a damaged file, or a keyframe without boxes.
    """
    movable, levels, drive = Movable(source), Levels(), None
    before: tuple[int, Boxes] | None = None
    begun, height = np.full(256, -np.inf), 0.0
    for sample in samples:
        boxes, time = movable.boxes(sample), source.timestamp(sample)
        frame = source.frame(sample, Reads(sweeps=sweeps, cameras=False))
        if frame.points is not None:
            drive = drive or _empty(grid, frame.global_from_ego[:3, 3])
            seconds = 1e-6 * (time - before[0]) if before else 1.0
            motion = motion_between(before[1] if before else Boxes.none(), boxes, seconds)
            returns = returns_of(frame, source, sweeps)
            returns = _not_measured(returns, 1e-6 * time, begun)
            assigned = movable.assigned(returns, motion, seconds)
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
