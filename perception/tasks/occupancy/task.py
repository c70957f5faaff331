"""Semantic occupancy around the vehicle, free distances, and obstacles of no known class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from perception.frame import Arrays, Boxes, Frame
from perception.grid import BevGrid, Occupancy, VoxelGrid, occupancy_classes
from perception.tasks.drawing import COUNTED_SCORE, Layer, VoxelLayer
from perception.tasks.occupancy.config import OccupancyHead
from perception.tasks.occupancy.ground import cells_of_voxels
from perception.tasks.occupancy.labels import UNKNOWN, ego_from_reference, hide_unobserved, resample
from perception.tasks.occupancy.memory import FusedOccupancy
from perception.tasks.occupancy.metric import OccupancyMetric
from perception.tasks.occupancy.obstacle_scores import OBSTACLES, ObstacleWriter
from perception.tasks.occupancy.obstacles import (
    MARGIN,
    Obstacles,
    ObstacleTracker,
    is_covered,
    obstacle_boxes,
    obstacle_clusters,
)
from perception.tasks.occupancy.rays import OCCUPIED, body_levels
from perception.tasks.occupancy.result import LEVELS, OccupancyResult
from perception.tasks.outputs import Area, Output
from perception.tasks.published import Cloud
from perception.tasks.task import Task
from perception.taxonomy import Taxonomy

if TYPE_CHECKING:
    from perception.tasks.network import TaskNetwork


# Fused occupancy, and the part of it that no tracked object explains.
#
# A detector that misses a class leaves the voxels of this class unexplained. No annotation is needed to see it.

VOXELS = 20  # of a class in a frame, below which nothing follows from them
SHARE = 0.7  # of the voxels of a class, above which its objects seem to be missed
FRAMES = 3  # in sequence


@dataclass(frozen=True)
class OccupiedSpace:
    """The state of a drive."""

    fused: OccupancyResult  # occupancy around the vehicle
    obstacles: Obstacles  # clusters of no known class that no object explains
    unexplained: np.ndarray  # (2, detection classes) int, from `count_unexplained_voxels`
    doubts: Mapping[str, str]  # detection classes whose objects seem to be missed -> the reason


class ExplainedOccupancy(FusedOccupancy):
    """Memory of the fused occupancy, whose state is an `OccupiedSpace` once it is explained."""

    def __init__(self, grid: VoxelGrid, classes: Sequence[str], config: OccupancyHead, taxonomy: Taxonomy) -> None:
        names = {each.name for each in taxonomy.classes if not each.static}
        moving = [i for i, name in enumerate(classes) if name in names]
        solid = [i for i, name in enumerate(classes[:-1]) if name not in config.flat]
        super().__init__(grid, len(classes), moving, solid, body_levels(grid, config.body))
        self._taxonomy, self._tracker, self._doubts = taxonomy, ObstacleTracker(), Doubts(taxonomy.class_names)

    def explain(self, frame: Frame, state: OccupancyResult, objects: Boxes) -> OccupiedSpace:
        found, pose = obstacle_clusters(state), frame.global_from_reference
        clusters = obstacle_boxes(found.centers, found.sizes[:, [1, 0, 2]], found.probabilities).transformed(pose)
        here = objects.transformed(np.linalg.inv(pose))
        voxels = count_unexplained_voxels(state.classes, state.grid, here, self._taxonomy)
        return OccupiedSpace(state, self._tracker.update(clusters, objects), voxels, self._doubts.update(voxels))


def count_unexplained_voxels(classes: np.ndarray, grid: VoxelGrid, boxes: Boxes, taxonomy: Taxonomy) -> np.ndarray:
    """(2, C) int: for each detection class its occupied voxels, and those that no box (in its frame) explains.

    A box explains the voxels of its class within MARGIN of its footprint, and from COUNTED_SCORE on those of all
    classes: a detector with hundreds of unlikely boxes has one of some class nearly everywhere.
    """
    label_of = detection_labels(taxonomy)
    labels = label_of[classes]
    movable = labels >= 0
    labels, centers = labels[movable], grid.centers()[movable].astype(np.float64)
    lost, count = ~is_covered(centers, boxes.select(boxes.scores >= COUNTED_SCORE), MARGIN), len(taxonomy.classes)
    for label in np.unique(labels[lost]).tolist():
        own = np.flatnonzero(lost & (labels == label))
        lost[own] = ~is_covered(centers[own], boxes.select(boxes.labels == label), MARGIN)
    return np.stack([np.bincount(labels, minlength=count), np.bincount(labels[lost], minlength=count)])


class Doubts:
    """Detection classes whose objects seem to be missed, over one drive."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names, self._frames = names, np.zeros(len(names), np.int64)

    def update(self, voxels: np.ndarray) -> dict[str, str]:
        """Class -> reason, after one more frame with `count_unexplained_voxels` (2, C)."""
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
    for each in taxonomy.point_classes[: len(taxonomy.voxel_names) - 1]:
        own = {label_of.get(category, -1) for category in each.categories or (each.name,)}
        found.append(own.pop() if len(own) == 1 else -1)
    return np.array([*found, -1])  # free


class OccupancyTask(Task[OccupancyResult]):
    """Voxels with classes, see `OccupancyResult`."""

    name = "occupancy"
    truth = ("occupancy",)
    metric = OccupancyMetric
    Config = OccupancyHead
    files: ClassVar[Mapping[str, str]] = {"obstacles": OBSTACLES}

    def __init__(self, config: OccupancyHead, grid: BevGrid, taxonomy: Taxonomy) -> None:
        super().__init__(config, grid, taxonomy)
        self.voxels, self.classes = config.voxels(grid.reference), occupancy_classes(taxonomy)
        low, height = self.voxels.z[0], self.voxels.edges[2]
        levels = tuple(f"{low + i * height:g} m" for i in range(self.voxels.shape[0]))
        area = Area.of(self.voxels)
        likelihood = partial(Output, kind="raster", names=levels, area=area, steps=LEVELS)
        self.outputs = (
            Output(
                name="classes",
                kind="labels",
                unit=f"index into {' '.join(self.classes)}; levels, rows, columns",
                names=self.classes,
                area=area,
            ),
            likelihood(name="occupied", unit="probability that the voxel is not free, by the height of its level"),
            likelihood(name="others", unit="probability of the class others, by the height of its level"),
            Output(
                name="free",
                kind="labels",
                unit="m, free distance by direction of 1 degree, from x counter-clockwise",
                cells=False,
                instead=0.0,
            ),
        )

    def network(self, channels: int) -> TaskNetwork:
        from perception.tasks.occupancy.network import ChannelToHeightHead

        return ChannelToHeightHead(self.config, channels, self.grid, self.classes)

    def labels(self, frame: Frame) -> dict[str, np.ndarray]:
        """`classes` (levels, rows, columns) uint8; UNKNOWN where nothing observed it, and without annotations."""
        truth: Occupancy | None = frame.truth.get("occupancy")
        if truth is None:
            return {"classes": np.full(self.voxels.shape, UNKNOWN, np.uint8)}
        annotated = hide_unobserved(truth, self.config.observed)
        pose, flat = ego_from_reference(frame), [i for i, name in enumerate(self.classes) if name in self.config.flat]
        classes = resample(annotated, truth.grid, self.voxels, pose, len(self.classes), flat)
        if frame.boxes is not None and frame.pasted:  # the annotations are of the place without them
            objects = frame.boxes.select(np.arange(len(frame.boxes))[-frame.pasted :])
            columns, margin = self.voxels.centers()[0], self.voxels.cell / np.sqrt(2)
            classes[:, is_covered(columns.reshape(-1, 3), objects, margin).reshape(columns.shape[:2])] = UNKNOWN
        return {"classes": classes}

    def from_arrays(self, arrays: Arrays) -> OccupancyResult:
        return OccupancyResult(**arrays, grid=self.voxels)

    def memory(self) -> ExplainedOccupancy:
        return ExplainedOccupancy(self.voxels, self.classes, self.config, self.taxonomy)

    def doubts(self, state: OccupiedSpace) -> Mapping[str, str]:
        return state.doubts

    def writer(self, folder: Path, sensors: Sequence[str]) -> AbstractContextManager[ObstacleWriter]:
        return ObstacleWriter.open(folder, self.taxonomy)

    def cloud(self, frame: Frame, result: OccupancyResult | None, state: OccupiedSpace | None) -> Cloud | None:
        """The centres of the fused voxels that are occupied, and the probabilities that they are."""
        if state is None:
            return None
        fused, grid = state.fused, self.voxels
        index = np.flatnonzero((fused.occupied > OCCUPIED) & (fused.classes < len(self.classes) - 1))
        place = np.stack(np.unravel_index(index, grid.shape)[::-1], axis=1)  # column, row, level
        centers = np.array([grid.x[0], grid.y[0], grid.z[0]]) + (place + 0.5) * grid.edges
        return Cloud(centers, fused.classes.take(index), fused.occupied.take(index))

    @property
    def ground(self) -> BevGrid:
        voxels = self.voxels
        return BevGrid(voxels.x, voxels.y, voxels.z, voxels.cell, voxels.reference)

    def cells(self, state: OccupiedSpace, grid: BevGrid) -> np.ndarray:
        solid = np.array([name not in self.config.flat for name in self.classes[:-1]] + [False])
        return cells_of_voxels(state.fused, body_levels(self.voxels, self.config.body), solid, grid)

    def draw(self, frame: Frame, result: OccupancyResult, state: OccupiedSpace | None) -> list[Layer]:
        """The fused voxels that are occupied, and the unknown obstacles."""
        seen = result if state is None else state.fused
        with np.errstate(invalid="ignore"):
            there = (seen.occupied > OCCUPIED) & (seen.classes < len(self.classes) - 1)
        centers, labels = seen.grid.centers()[there], seen.classes[there]
        voxels = VoxelLayer("occupancy", centers, labels, seen.grid.edges, self.taxonomy.voxel_colours())
        return [voxels] if state is None else [voxels, state.obstacles.layer()]

    @staticmethod
    def arrays(result: OccupancyResult) -> dict[str, np.ndarray]:
        return {name: getattr(result, name) for name in ("classes", "occupied", "others", "free")}
