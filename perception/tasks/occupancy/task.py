"""Semantic occupancy around the vehicle, free distances, and obstacles of no known class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from perception.datasets.keyframes import Keyframes
from perception.frame import Frame
from perception.grid import BevGrid, occupancy_classes
from perception.tasks.drawing import Layer, VoxelLayer
from perception.tasks.occupancy.config import OccupancyHead
from perception.tasks.occupancy.explained import ExplainedOccupancy, OccupiedSpace
from perception.tasks.occupancy.free_space import OCCUPIED, body_levels
from perception.tasks.occupancy.labels import UNKNOWN, ego_from_reference, observed_classes, resampled
from perception.tasks.occupancy.memory import FusedOccupancy
from perception.tasks.occupancy.metric import OccupancyMetric
from perception.tasks.occupancy.obstacle_scores import OBSTACLES, ObstacleWriter
from perception.tasks.occupancy.obstacles import covered
from perception.tasks.occupancy.result import OccupancyResult, levels_of, pack, probabilities_of, unpack
from perception.tasks.task import Arrays, Output, Task
from perception.taxonomy import Taxonomy

if TYPE_CHECKING:
    from perception.tasks.network import TaskNetwork


class OccupancyTask(Task[OccupancyResult]):
    """Voxels with classes, see `OccupancyResult`.

    Attributes:
        voxels: their grid.
        classes: their names.
    """

    name = "occupancy"
    metric = OccupancyMetric
    Config = OccupancyHead
    files: ClassVar[Mapping[str, str]] = {"obstacles": OBSTACLES}

    def __init__(self, config: OccupancyHead, grid: BevGrid, taxonomy: Taxonomy) -> None:
        super().__init__(config, grid, taxonomy)
        self.voxels, self.classes = config.voxels(grid.reference), occupancy_classes(taxonomy)
        low, height = self.voxels.z[0], self.voxels.edges[2]
        levels = tuple(f"{low + i * height:g} m" for i in range(self.voxels.shape[0]))
        self.outputs = (
            Output("classes", f"index into {' '.join(self.classes)}; levels, rows, columns", labels=True),
            Output("occupied", "probability that the voxel is not free, by the height of its level", levels),
            Output("others", "probability of the class others, by the height of its level", levels),
            Output(
                "free", "m, free distance by direction of 1 degree, from x counter-clockwise", cells=False, labels=True
            ),
        )

    def network(self, channels: int) -> TaskNetwork:
        from perception.tasks.occupancy.network import ChannelToHeightHead

        return ChannelToHeightHead(self.config, channels, self.grid, self.classes)

    def labels(self, frame: Frame, source: Keyframes | None = None) -> dict[str, np.ndarray]:
        """`classes` (levels, rows, columns) uint8; UNKNOWN where nothing observed it, and without annotations."""
        truth = None if source is None else source.truth(frame.token).occupancy()
        if truth is None:
            return {"classes": np.full(self.voxels.shape, UNKNOWN, np.uint8)}
        annotated = observed_classes(truth, self.config.observed)
        pose, flat = ego_from_reference(frame), [i for i, name in enumerate(self.classes) if name in self.config.flat]
        classes = resampled(annotated, truth.grid, self.voxels, pose, len(self.classes), flat)
        if frame.boxes is not None and frame.pasted:  # the annotations are of the place without them
            objects = frame.boxes.select(np.arange(len(frame.boxes))[-frame.pasted :])
            columns, margin = self.voxels.centers()[0], self.voxels.cell / np.sqrt(2)
            classes[:, covered(columns.reshape(-1, 3), objects, margin).reshape(columns.shape[:2])] = UNKNOWN
        return {"classes": classes}

    def labelled(self, source: Keyframes, token: str) -> bool:
        return source.truth(token).has_occupancy()

    def result(self, outputs: Arrays) -> OccupancyResult:
        # Rounded as in a file.
        occupied, others = (probabilities_of(levels_of(outputs[name])) for name in ("occupied", "others"))
        return OccupancyResult(outputs["classes"], occupied, others, outputs["free"], self.voxels)

    def memory(self) -> ExplainedOccupancy:
        moving = {each.name for each in self.taxonomy.classes if not each.static}
        solid = [i for i, name in enumerate(self.classes[:-1]) if name not in self.config.flat]
        fused = FusedOccupancy(
            self.voxels,
            len(self.classes),
            [i for i, name in enumerate(self.classes) if name in moving],
            solid,
            body_levels(self.voxels, self.config.body),
        )
        return ExplainedOccupancy(fused, self.taxonomy)

    def doubts(self, state: OccupiedSpace) -> Mapping[str, str]:
        """Detected classes whose voxels no object explains."""
        return state.doubts

    def writer(self, folder: Path, sensors: Sequence[str]) -> AbstractContextManager[ObstacleWriter]:
        return ObstacleWriter.open(folder, self.taxonomy)

    def draw(self, frame: Frame, result: OccupancyResult, state: OccupiedSpace | None) -> list[Layer]:
        """The fused voxels that are occupied, and the unknown obstacles."""
        seen = result if state is None else state.fused
        with np.errstate(invalid="ignore"):
            there = (seen.occupied > OCCUPIED) & (seen.classes < len(self.classes) - 1)
        centers, labels = seen.grid.centers()[there], seen.classes[there]
        voxels = VoxelLayer("occupancy", centers, labels, seen.grid.edges, self.taxonomy.voxel_colours())
        return [voxels] if state is None else [voxels, state.obstacles.layer()]

    @staticmethod
    def pack(result: OccupancyResult) -> dict[str, np.ndarray]:
        return pack(result)

    @staticmethod
    def unpack(arrays: Arrays) -> OccupancyResult:
        return unpack(arrays)

    def finite(self, outputs: Arrays) -> tuple[Arrays, Mapping[str, int]]:
        """Probabilities that are not finite become NaN, which the memory ignores; such free distances become 0."""
        kept, counts = dict(outputs), {}
        for name, instead in (("occupied", np.nan), ("others", np.nan), ("free", 0.0)):
            wrong = ~np.isfinite(outputs[name])
            if wrong.any():
                kept[name] = np.where(wrong, instead, outputs[name]).astype(outputs[name].dtype)
                counts[name] = int(np.count_nonzero(wrong))
        return kept if counts else outputs, counts
