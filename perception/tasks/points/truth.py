"""The annotated classes of the points that a network saw. numpy only."""

from __future__ import annotations

import numpy as np

from perception.datasets.keyframes import Keyframes
from perception.frame import Frame


def annotated_classes(frame: Frame, source: Keyframes | None) -> np.ndarray | None:
    """(M,) annotated class of each of the frame's keyframe points, -1 for none; None if they are not annotated.

    Args:
        source: of the frame, without injected faults. Points that it does not have at the same place have the class -1.
    """
    if frame.points is None:
        return None
    if frame.class_of_point is not None:
        return frame.keyframe_classes
    if source is None or not source.has_point_classes(frame.token):
        return None
    recorded = source.frame(frame.token, frame.reference, cameras=False)
    if recorded.keyframe_classes is None:
        return None
    return classes_at(frame.keyframe_points, recorded.keyframe_points, recorded.keyframe_classes)


def classes_at(points: np.ndarray, recorded: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """(M,) class of each point (M, >=3): that of a recorded point (N, >=3) at the same place, bit for bit; else -1."""
    mine, others = _places(points), _places(recorded)
    if np.array_equal(mine, others):
        return classes
    class_at = dict(zip(others.tolist(), classes.tolist(), strict=True))
    return np.array([class_at.get(place, -1) for place in mine.tolist()], classes.dtype)


def _places(points: np.ndarray) -> np.ndarray:
    """(N,) x y z as bytes."""
    return np.ascontiguousarray(points[:, :3], np.float32).view("S12")[:, 0]
