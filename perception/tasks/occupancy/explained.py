"""Fused occupancy, and what of it the objects of all tasks do not explain. numpy only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from perception.frame import Boxes, Frame
from perception.tasks.occupancy.disagreement import Doubts, unexplained_voxels
from perception.tasks.occupancy.memory import FusedOccupancy
from perception.tasks.occupancy.obstacles import obstacle_clusters
from perception.tasks.occupancy.result import OccupancyResult
from perception.tasks.occupancy.unknown import Obstacles, ObstacleTracker, cluster_boxes
from perception.tasks.task import Memory
from perception.taxonomy import Taxonomy


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
