"""A task whose point classes are heights."""

from dataclasses import replace
from typing import Any

import numpy as np

from perception.datasets.keyframes import NO_SENSORS, AnnotatedPoints, Annotation, Reads, Recording
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.frame import Frame


def heights(points: np.ndarray) -> np.ndarray:
    return np.clip(points[:, 2] * 4 + 4, 0, 15).astype(np.int16)


class Heights:
    """Tables whose points have the class of their height."""

    def __init__(self, tables: NuScenesTables) -> None:
        self._tables = tables

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tables, name)

    def recording(self, token: str, reads: Reads = NO_SENSORS) -> Recording:
        found = self._tables.recording(token, reads)
        return replace(found, truth={**found.truth, "points": Annotation()})

    def frame(self, token: str, reads: Reads = Reads()) -> Frame:  # noqa: B008 - it is immutable
        frame = self._tables.frame(token, reads._replace(change=None))
        if reads.annotations or "points" in reads.truth:
            frame = replace(frame, class_of_point=heights(frame.points))
        if "points" in reads.truth:
            own = AnnotatedPoints(frame.keyframe_points, frame.keyframe_classes)
            frame = replace(frame, truth={**frame.truth, "points": own})
        return frame if reads.change is None else reads.change(frame)
