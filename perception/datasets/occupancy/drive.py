"""Gathers what the LiDARs measured over a drive: the static world, every object that moves, and the space between.

As Occ3D (Tian et al., NeurIPS 2023, section 3) and SurroundOcc (Wei et al., ICCV 2023, section 4) describe: points in
the annotated boxes of an object are gathered in the object's own frame, the rest in the global frame. numpy only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from perception.datasets.keyframes import Keyframes
from perception.datasets.occupancy.crossed_voxels import CrossedVoxels
from perception.datasets.occupancy.objects import MARGIN, Motion, motion_between, owners
from perception.datasets.occupancy.returns import NONE, UNKNOWN, Returns, returns_of
from perception.datasets.occupancy.thinned_cloud import ThinnedCloud, cell_keys
from perception.errors import InputError
from perception.frame import KEYFRAME_AGE, Boxes
from perception.taxonomy import Taxonomy
from perception.voxels import VoxelGrid

CELL = 0.1  # m, of which one point of each class is kept
_HEIGHT = 8.0  # m above and below a LiDAR that its rays are followed
_ROAD = 0.2  # m above the bottom of a box, where points without a class are the road's


@dataclass
class Drive:
    """What was measured on one drive. Points of objects are in the frames of their boxes, all else is global."""

    static: ThinnedCloud
    crossed: CrossedVoxels
    objects: dict[str, ThinnedCloud] = field(default_factory=dict)  # by the object's id
    annotated: bool = False  # whether some points have annotated classes


class Movable:
    """The annotated objects of a data set that may move, and the point classes that they have."""

    def __init__(self, source: Keyframes) -> None:
        self._source, taxonomy = source, source.taxonomy
        self._static = np.array([each.static for each in taxonomy.classes])
        self._class_of_label = _point_classes(taxonomy)
        moving = self._class_of_label[:-1][~self._static]
        self._classes = moving[moving != NONE]

    def boxes(self, sample: str) -> Boxes:
        """In the global frame, with the label -1 for those of no detection class; InputError without annotations."""
        boxes, others = self._source.boxes(sample), self._source.obstacles(sample)
        if boxes is None:
            raise InputError(
                f"{self._source.dataroot}: keyframe {sample} has no boxes, and what moves would leave a trail; "
                "annotate drives that have them"
            )
        boxes = boxes.select(~self._static[boxes.labels])
        return boxes if others is None else Boxes.joined(boxes, others)

    def assigned(self, returns: Returns, motion: Motion, seconds: float) -> Assigned:
        """Which returns are of which object.

        A return in a box is the object's if its class is one that objects have. Without a class it is, too, unless it
        is at the bottom of the box, and it gets the class of the box.

        Args:
            motion: of the boxes in the `seconds` before the keyframe.
        """
        shares = np.where(returns.own, 1, 1 - returns.ages / seconds)
        owner, local = owners(returns.points, shares, motion, MARGIN)
        bottoms = np.append(-motion.end.sizes[:, 2] / 2, 0)[owner]
        thing = np.isin(returns.classes, self._classes)
        low = (returns.classes == UNKNOWN) & (local[:, 2] < bottoms + _ROAD)
        owner = np.where(thing | ((returns.classes < 0) & ~low), owner, -1)
        of_box = self._class_of_label[np.append(motion.end.labels, -1)[owner]]
        classes = np.where((returns.classes == UNKNOWN) & (owner >= 0), of_box, returns.classes)
        return Assigned(owner, local, classes.astype(np.int16), (owner < 0) & ~thing)


@dataclass(frozen=True)
class Assigned:
    """Of N returns."""

    owner: np.ndarray  # (N,) int64 index of the box, -1 for none
    local: np.ndarray  # (N, 3) m in the frame of that box
    classes: np.ndarray  # (N,) int16, with those that follow from the box
    static: np.ndarray  # (N,) bool: of nothing that may move; neither: of an object's class, but in no box


def _point_classes(taxonomy: Taxonomy) -> np.ndarray:
    """(C + 1,) point class of each detection class, by their categories in the data set; NONE where there is none, and
    for label -1."""
    labels = taxonomy.point_labels_of_categories()
    found = [[labels[c] for c in each.categories or (each.name,) if c in labels] for each in taxonomy.classes]
    return np.array([*((each[0] if each else NONE) for each in found), NONE], np.int16)


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
    movable, drive = Movable(source), None
    before: tuple[int, Boxes] | None = None
    measured = -np.inf
    for sample in samples:
        boxes, time = movable.boxes(sample), source.timestamp(sample)
        frame = source.frame(sample, "ego", sweeps, cameras=False)
        if frame.points is not None:
            drive = drive or _empty(grid, frame.global_from_ego[:3, 3])
            seconds = 1e-6 * (time - before[0]) if before else 1.0
            motion = motion_between(before[1] if before else Boxes.none(), boxes, seconds)
            returns = returns_of(frame, source, sweeps)
            returns = returns.select(returns.own | (returns.ages < 1e-6 * (time - measured) - KEYFRAME_AGE))
            _add(drive, returns, movable.assigned(returns, motion, seconds), motion.end, grid)
            measured = time
        before = time, boxes
        advance()
    return drive


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
