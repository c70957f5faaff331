"""Layers of detections, tracks and annotations, and the count of mistakes. numpy only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from perception.frame import Boxes, Frame
from perception.grid import BevGrid
from perception.tasks.detection.columns import BoxColumns
from perception.tasks.detection.matching import match
from perception.tasks.detection.tracker import Tracks
from perception.tasks.drawing import COUNTED_SCORE, LOWEST_SCORE, BoxLayer

WITHIN = 2.0  # m in the ground plane between the centres of a detection and its annotation


def layers(frame: Frame, detections: Boxes, tracks: Tracks | None, colours: Mapping[str, str]) -> Iterator[BoxLayer]:
    """Detections (best score first), tracks, and annotations with LiDAR or RADAR points; colours: of each class."""
    scores = detections.scores
    texts = [f"{score:.2f}" for score in scores.tolist()]
    ranks = [str(i) for i in range(len(detections))]
    yield BoxLayer("detections", "perceived", detections, colours, scores >= LOWEST_SCORE, ranks, texts)
    if tracks is not None:
        shown = tracks.confirmed & (tracks.boxes.scores >= LOWEST_SCORE)
        ids = [str(track) for track in tracks.ids.tolist()]
        yield BoxLayer("tracks", "tracked", tracks.boxes, colours, shown, ids, ids, faded=tracks.unseen > 0)
    if frame.boxes is not None:
        hit, names = frame.boxes.num_points != 0, frame.boxes.instances.tolist()
        empty = [""] * len(names)
        yield BoxLayer("annotations", "annotated", frame.boxes, colours, hit, names, empty, within=WITHIN)


def mistakes(predicted: Boxes, annotated: Boxes) -> tuple[int, int]:
    """Number of annotated boxes without a detection, and of detections without an annotated box.

    Matched as for the scores, at a distance of WITHIN.

    Args:
        predicted: boxes above the score threshold.
        annotated: in the same frame of reference.
    """
    taken = match(BoxColumns.of_frame(annotated), BoxColumns.of_frame(predicted), [WITHIN])
    found = np.count_nonzero(taken >= 0)
    return len(annotated) - found, len(predicted) - found


def mistakes_of(frame: Frame, detections: Boxes, grid: BevGrid) -> tuple[int, str] | None:
    """The number of `mistakes` on the grid, and its description; None if the frame is not annotated."""
    if frame.boxes is None:
        return None
    there = grid.inside(frame.boxes.centers * [1, 1, 0]) & (frame.boxes.num_points != 0)
    counted = detections.select(detections.scores >= COUNTED_SCORE)
    missed, extra = mistakes(counted, frame.boxes.select(there))
    return missed + extra, f"{missed} missed, {extra} extra"
