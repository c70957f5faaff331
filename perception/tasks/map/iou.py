"""Intersection over union of the bird's-eye-view map, per class. numpy only."""

from __future__ import annotations

from typing import Any

import numpy as np

from perception.frame import MAP_CLASSES

# float32, as the probabilities are: in float64, 0.35 would not reach 0.35.
THRESHOLDS = np.array([0.35, 0.40, 0.45, 0.50, 0.55, 0.60, 0.65], np.float32)


class MapIou:
    """IoU per map class over all frames, as BEVFusion scores it (Liu et al., 2023, arXiv:2205.13542).

    A cell is predicted where the probability reaches the threshold. Intersections and unions are summed over
    the frames before they are divided. For each class, BEVFusion reports the best IoU over seven thresholds
    from 0.35 to 0.65, chosen on the very frames that are scored; so the IoU at a fixed 0.5 is reported as well.
    """

    def __init__(self) -> None:
        self.frames = 0
        self.true_cells = np.zeros(len(MAP_CLASSES), np.int64)
        self.intersections = np.zeros((len(MAP_CLASSES), len(THRESHOLDS)), np.int64)
        self.unions = np.zeros((len(MAP_CLASSES), len(THRESHOLDS)), np.int64)

    def add(self, probabilities: np.ndarray, truth: np.ndarray) -> None:
        """Count one frame.

        Args:
            probabilities: (6, rows, columns) in [0, 1], in MAP_CLASSES order.
            truth: (6, rows, columns), non-zero where the class is, on the same grid.
        """
        present = truth.astype(bool)[:, None]
        predicted = probabilities.astype(np.float32)[:, None] >= THRESHOLDS[:, None, None]
        self.intersections += np.count_nonzero(predicted & present, axis=(2, 3))
        self.unions += np.count_nonzero(predicted | present, axis=(2, 3))
        self.true_cells += np.count_nonzero(present, axis=(1, 2, 3))
        self.frames += 1

    def result(self) -> dict[str, Any] | None:
        """`iou_max` and `iou_0.5`, each {class: IoU, "mean": over the classes}; None if no frame was added.

        A class without a single true cell in all frames has no IoU: None, and the mean is over the others.
        """
        if self.frames == 0:
            return None
        ious = self.intersections / np.maximum(self.unions, 1)
        return {
            "iou_max": self._named(ious.max(axis=1)),
            "iou_0.5": self._named(ious[:, THRESHOLDS == 0.5][:, 0]),
        }

    def _named(self, ious: np.ndarray) -> dict[str, float | None]:
        present = self.true_cells > 0
        named = {
            name: float(iou) if there else None for name, iou, there in zip(MAP_CLASSES, ious, present, strict=True)
        }
        return named | {"mean": float(ious[present].mean()) if present.any() else None}
