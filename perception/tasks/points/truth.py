"""The annotated points of a frame, and the classes that a network gave to them. numpy only."""

from __future__ import annotations

import numpy as np

from perception.datasets.keyframes import Keyframes, Reads
from perception.frame import Frame
from perception.tasks.points.iou import NONE


def annotated_frame(frame: Frame, source: Keyframes | None) -> Frame | None:
    """The frame as recorded, with the annotated classes of its points; None if they are not annotated.

    Args:
        frame: as the network saw it.
        source: of the frame, without corruptions and injected faults.
    """
    if frame.keyframe_classes is None and source is not None and source.truth(frame.token).has_point_classes():
        frame = source.frame(frame.token, Reads(frame.reference, cameras=False))
    return None if frame.keyframe_classes is None else frame


def classes_at(points: np.ndarray, seen: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """(N,) uint8 class that the network gave to each recorded point (N, >=3); NONE for those that it did not see.

    Points at the same place, bit for bit, are the same. The others were moved, in their order, if as many are left of
    the recorded ones as of those that the network saw.

    Args:
        seen: (M, >=3) points that the network saw.
        classes: (K,) uint8 of the first K of them.
    """
    given = np.full(len(seen), NONE, np.uint8)
    given[: len(classes)] = classes[: len(seen)]
    ours, theirs = _places(points), _places(seen)
    if np.array_equal(ours, theirs):
        return given
    class_at = dict(zip(theirs.tolist(), given.tolist(), strict=True))
    found = np.array([class_at.get(place, NONE) for place in ours.tolist()], np.uint8)
    gone, moved = ~np.isin(ours, theirs), ~np.isin(theirs, ours)
    if np.count_nonzero(gone) == np.count_nonzero(moved):
        found[gone] = given[moved]
    return found


def _places(points: np.ndarray) -> np.ndarray:
    """(N,) x y z as bytes."""
    return np.ascontiguousarray(points[:, :3], np.float32).view("S12")[:, 0]
