"""Fused occupancy, and what of it the objects of all tasks do not explain. numpy only.

A detector that misses a class leaves the voxels of this class unexplained. No annotation is needed to see it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from perception.frame import Boxes, Frame
from perception.grid import VoxelGrid
from perception.tasks.drawing import COUNTED_SCORE
from perception.tasks.occupancy.memory import FusedOccupancy
from perception.tasks.occupancy.obstacles import (
    MARGIN,
    Obstacles,
    ObstacleTracker,
    cluster_boxes,
    covered,
    obstacle_clusters,
)
from perception.tasks.occupancy.result import OccupancyResult
from perception.tasks.task import Memory
from perception.taxonomy import Taxonomy

VOXELS = 20  # of a class in a frame, below which nothing follows from them
SHARE = 0.7  # of the voxels of a class, above which its objects seem to be missed
FRAMES = 3  # in sequence


@dataclass(frozen=True)
class OccupiedSpace:
    """The state of a drive.

    Attributes:
        fused: occupancy around the vehicle.
        obstacles: clusters of no known class that no object explains.
        unexplained: (2, detection classes) int, from `unexplained_voxels`.
        doubts: detection classes whose objects seem to be missed -> the reason.
    """

    fused: OccupancyResult
    obstacles: Obstacles
    unexplained: np.ndarray
    doubts: Mapping[str, str]


class ExplainedOccupancy(Memory[OccupancyResult]):
    """Memory of the fused occupancy, whose state is an `OccupiedSpace` once it is explained."""

    def __init__(self, fused: FusedOccupancy, taxonomy: Taxonomy) -> None:
        self._fused, self._taxonomy = fused, taxonomy
        self._tracker, self._doubts = ObstacleTracker(), Doubts(taxonomy.class_names)

    @property
    def bytes(self) -> int:
        """Size of the fused occupancy, the same for the whole drive."""
        return self._fused.bytes

    def update(self, frame: Frame, result: OccupancyResult | None) -> OccupancyResult:
        return self._fused.update(frame, result)

    def explain(self, frame: Frame, state: OccupancyResult, objects: Boxes) -> OccupiedSpace:
        found, pose = obstacle_clusters(state, state.grid), frame.global_from_reference
        clusters = cluster_boxes(found.centers, found.sizes, found.probabilities).transformed(pose)
        here = objects.transformed(np.linalg.inv(pose))
        voxels = unexplained_voxels(state.classes, state.grid, here, self._taxonomy)
        return OccupiedSpace(state, self._tracker.update(clusters, objects), voxels, self._doubts.update(voxels))


def unexplained_voxels(classes: np.ndarray, grid: VoxelGrid, boxes: Boxes, taxonomy: Taxonomy) -> np.ndarray:
    """(2, C) int: for each detection class its occupied voxels, and those of them that no box explains.

    A box explains the voxels of its class within MARGIN of its footprint, and from COUNTED_SCORE on those of all
    classes: a detector with hundreds of unlikely boxes has one of some class nearly everywhere.

    Args:
        classes: (levels, rows, columns), index into `occupancy_classes`.
        boxes: in the reference frame of the grid.
    """
    label_of = detection_labels(taxonomy)
    labels = label_of[classes]
    movable = labels >= 0
    labels, centers = labels[movable], grid.centers()[movable].astype(np.float64)
    lost, count = ~covered(centers, boxes.select(boxes.scores >= COUNTED_SCORE), MARGIN), len(taxonomy.classes)
    for label in np.unique(labels[lost]).tolist():
        own = np.flatnonzero(lost & (labels == label))
        lost[own] = ~covered(centers[own], boxes.select(boxes.labels == label), MARGIN)
    return np.stack([np.bincount(labels, minlength=count), np.bincount(labels[lost], minlength=count)])


class Doubts:
    """Detection classes whose objects seem to be missed, over one drive.

    Args:
        names: of the detection classes.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names, self._frames = names, np.zeros(len(names), np.int64)

    def update(self, voxels: np.ndarray) -> dict[str, str]:
        """Class -> reason, after one more frame.

        Args:
            voxels: (2, C) from `unexplained_voxels`.
        """
        occupied, lost = voxels
        self._frames = np.where((occupied >= VOXELS) & (lost > SHARE * occupied), self._frames + 1, 0)
        return {
            self._names[i]: f"no object at {lost[i]} of {occupied[i]} occupied voxels, {self._frames[i]} frames so far"
            for i in np.flatnonzero(self._frames >= FRAMES).tolist()
        }


def detection_labels(taxonomy: Taxonomy) -> np.ndarray:
    """(classes of voxels,) int: the detection class with a category of each class of voxels; -1 for none."""
    label_of = taxonomy.labels_of_categories()
    found = [-1]  # others
    for each in taxonomy.point_classes:
        own = {label_of.get(category, -1) for category in each.categories or (each.name,)}
        found.append(own.pop() if len(own) == 1 else -1)
    return np.array([*found, -1])  # free
