"""The class of each point of the LiDAR's keyframe: semantic segmentation (nuScenes-lidarseg, Fong et al., 2022)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from perception.datasets.keyframes import Keyframes
from perception.frame import Frame
from perception.grid import BevGrid
from perception.tasks.drawing import PointLayer
from perception.tasks.points.config import PointsHead
from perception.tasks.points.metric import NONE, PointsMetric
from perception.tasks.task import Arrays, Output, Task
from perception.taxonomy import Taxonomy

if TYPE_CHECKING:
    from perception.tasks.network import TaskNetwork


class PointsTask(Task[np.ndarray]):
    """Its result is (K,) uint8: the point class of each of the keyframe's first K points, NONE for further places."""

    name = "points"
    reads = "points"
    metric = PointsMetric
    Config = PointsHead

    def __init__(self, config: PointsHead, grid: BevGrid, taxonomy: Taxonomy) -> None:
        super().__init__(config, grid, taxonomy)
        self.outputs = (
            Output("classes", "point class of each of `points` by its index in the taxonomy", labels=True),
            Output("confidence", "probability of this class; 0: padding", ("confidence",)),
        )

    def network(self, channels: int) -> TaskNetwork:
        from perception.tasks.points.network import PointSegmentationHead

        weights = [self.config.class_weights.get(name, 1.0) for name in self.taxonomy.point_names]
        return PointSegmentationHead(self.config, channels, self.grid, weights)

    def labels(self, frame: Frame, source: Keyframes | None = None) -> dict[str, np.ndarray]:
        """`classes` (K,) int16 of the points that the network gets; -1 for those without a class, and for padding."""
        classes, known = np.full(self.config.max_points, -1, np.int16), frame.keyframe_classes
        if known is not None:
            classes[: len(known)] = known[: len(classes)]
        return {"classes": classes}

    def labelled(self, source: Keyframes, token: str) -> bool:
        return source.truth(token).has_point_classes()

    def result(self, outputs: Arrays) -> np.ndarray:
        return np.where(outputs["confidence"][0] == 0, np.uint8(NONE), outputs["classes"])

    def draw(self, frame: Frame, result: np.ndarray, state: Any) -> list[PointLayer]:
        """The points that have a class."""
        points = np.zeros((0, 5), np.float32) if frame.points is None else frame.keyframe_points
        labels = result[: len(points)]
        chosen = np.flatnonzero(labels != NONE)
        colours = self.taxonomy.point_colours()
        return [PointLayer("points", points[chosen, :3], labels[chosen].astype(np.int64), colours)]
