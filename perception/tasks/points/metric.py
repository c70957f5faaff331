"""IoU of the classes of points."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from perception.datasets.keyframes import Keyframes
from perception.frame import Frame
from perception.grid import BevGrid
from perception.strict_json import shown
from perception.tasks.metric import Metric, Sample, lowest_ious
from perception.tasks.points.iou import count_rings, ious, summary
from perception.tasks.points.truth import annotated_frame, classes_at
from perception.tasks.rings import rings

if TYPE_CHECKING:
    from rich.table import Table


class PointsMetric(Metric[np.ndarray]):
    """IoU by class over the annotated points of all frames, as the devkit's `LidarSegEval` (`iou.summary`)."""

    main = "points_mIoU"

    def __init__(self, source: Keyframes, grid: BevGrid) -> None:
        super().__init__(source, grid)
        self._names = source.taxonomy.point_names
        self._counts: list[np.ndarray | None] = []  # of each frame; None for frames without annotated points

    def add(self, frame: Frame, result: np.ndarray) -> None:
        self._counts.append(counted(frame, result, self.source, len(self._names)))

    def scores(self) -> dict[str, Any]:
        """`points`: the result of `iou.summary`; None if no frame has annotated points."""
        total = self._total(np.ones(len(self._counts), bool))
        return {"points": summary(total, self._names) if total.any() else None}

    def part(self, frames: np.ndarray, bounds: tuple[float, float] | None = None) -> dict[str, Any]:
        """`points_mIoU`, the mean over the classes that occur, and `points_IoU` by class."""
        found = summary(self._total(frames, bounds), self._names)
        return {"points_mIoU": found["mean"], "points_IoU": found["classes"]}

    def _total(self, frames: np.ndarray, bounds: tuple[float, float] | None = None) -> np.ndarray:
        """(3, classes) counts over some frames."""
        known = [each for each, chosen in zip(self._counts, frames, strict=True) if chosen and each is not None]
        return sum((each[..., rings(bounds)].sum(axis=2) for each in known), np.zeros((3, len(self._names)), np.int64))

    def worst(self, count: int) -> list[Sample]:
        """The frames with the lowest `points_mIoU`."""
        found = (None if each is None else ious(each.sum(axis=2)) for each in self._counts)
        return lowest_ious("points_mIoU", found, count)

    def tables(self, scores: Mapping[str, Any]) -> list[Table]:
        """IoU per class."""
        from rich.table import Table

        if scores["points"] is None:
            return []
        table = Table(title="points", show_footer=True)
        table.add_column("class", footer="mean")
        table.add_column("IoU", shown(scores["points"]["mean"]), justify="right")
        for name in self._names:
            table.add_row(name, shown(scores["points"]["classes"][name]))
        return [table]


def counted(frame: Frame, result: np.ndarray, source: Keyframes | None, classes: int) -> np.ndarray | None:
    """`count_rings` of one frame; None without annotated points.

    Annotated points that the network did not see, because a corruption or fault took them away, are missed.

    Args:
        frame: as the network saw it.
        result: of the task for this frame; points beyond its K places have no class.
    """
    recorded = annotated_frame(frame, source)
    if recorded is None or recorded.keyframe_classes is None:
        return None
    points = recorded.keyframe_points
    seen = points[:0] if frame.points is None else frame.keyframe_points
    return count_rings(classes_at(points, seen, result), recorded.keyframe_classes, points, classes)
