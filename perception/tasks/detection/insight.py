"""What the report of an evaluation shows of detections: precision-recall curves, and the frames with most mistakes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from perception.tasks.detection.columns import BoxColumns
from perception.tasks.detection.matching import match
from perception.tasks.detection.scores import RECALLS, THRESHOLDS, DetectionScores
from perception.tasks.drawing import COUNTED_SCORE
from perception.tasks.metric import Curve, Kind, Outline, Sample
from perception.taxonomy import Taxonomy

WITHIN = 2.0  # m between the centres of an annotated object and its detection
_CORNERS = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]]) / 2  # of a box of length and width 1, the front first


def precision_recall(matched: DetectionScores, taxonomy: Taxonomy) -> list[Curve]:
    """Precision at RECALLS of each annotated class and each matching distance; 0 where a recall is not reached."""
    return [
        Curve(f"precision by recall: {name}", f"{distance:g} m", ("recall", "precision"), RECALLS, precision)
        for name, present, own in zip(
            taxonomy.class_names, matched.annotated.any(axis=0), matched.precisions(), strict=True
        )
        if present
        for distance, precision in zip(THRESHOLDS, own, strict=True)
    ]


def worst_samples(
    truth: BoxColumns, detections: BoxColumns, poses: np.ndarray, taxonomy: Taxonomy, count: int
) -> list[Sample]:
    """At most so many frames with the most mistakes: missed annotations and extra detections; then the lowest F1.

    Detections count from COUNTED_SCORE on. They are matched as for the scores, within WITHIN.

    Args:
        truth: scored annotations.
        detections: scored detections.
        poses: (F, 4, 4) of the vehicle in the global frame.
    """
    detections = detections.select(detections.scores >= COUNTED_SCORE)
    taken = match(truth, detections, (WITHIN,))[0]
    is_found, is_right = np.isin(np.arange(len(truth)), taken), taken >= 0
    found, missed, extra = (
        np.bincount(frames, minlength=len(poses))
        for frames in (truth.frames[is_found], truth.frames[~is_found], detections.frames[~is_right])
    )
    mistakes = missed + extra
    f1 = 2 * found / np.maximum(1, 2 * found + mistakes)
    samples = []
    for i in np.lexsort((f1, -mistakes))[: min(count, np.count_nonzero(mistakes))].tolist():
        outlines = [
            Outline(kind, taxonomy.class_names[label], corners)
            for boxes, kinds in (
                (truth, np.where(is_found, "found", "missed")),
                (detections, np.where(is_right, "right", "extra")),
            )
            for kind, label, corners in _footprints(boxes, kinds, i, poses[i])
        ]
        counts = {"mistakes": mistakes[i], "missed": missed[i], "extra": extra[i], "found": found[i]}
        samples.append(Sample(i, {**{name: int(n) for name, n in counts.items()}, "F1": float(f1[i])}, outlines))
    return samples


def _footprints(
    boxes: BoxColumns, kinds: np.ndarray, frame: int, pose: np.ndarray
) -> Iterator[tuple[Kind, int, np.ndarray]]:
    """Kind, label and corners (4, 2) in the vehicle's frame of the boxes of a frame."""
    own = np.flatnonzero(boxes.frames == frame)
    turn = np.stack([np.cos(boxes.yaws[own]), np.sin(boxes.yaws[own])], axis=-1)
    along = turn * boxes.sizes[own, 1:2]
    across = turn[:, ::-1] * [-1, 1] * boxes.sizes[own, 0:1]
    flat = boxes.centers[own, None, :2] + _CORNERS[:, :1] * along[:, None] + _CORNERS[:, 1:] * across[:, None]
    corners = (flat - pose[:2, 3]) @ pose[:2, :2]
    yield from zip(kinds[own].tolist(), boxes.labels[own].tolist(), corners, strict=True)
