"""Intersection over union of the HD map, per class. numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from perception.grid import BevGrid
from perception.tasks.rings import RING

# float32, as the probabilities are: in float64, 0.35 would not reach 0.35.
THRESHOLDS = np.array([0.35, 0.40, 0.45, 0.50, 0.55, 0.60, 0.65], np.float32)


def ious(counts: np.ndarray) -> np.ndarray:
    """(..., layers) IoU of counts (..., 3, layers) of intersection, union and true cells; NaN without true cells."""
    intersection, union, true = np.moveaxis(counts.astype(np.float64), -2, 0)
    return np.divide(intersection, union, out=np.full_like(union, np.nan), where=true > 0)


def predicted_cells(probabilities: np.ndarray) -> np.ndarray:
    """(layers, rows, columns) bool: cells where each class has a probability of at least 0.5."""
    return np.asarray(probabilities >= np.float32(0.5))


def count_rings(predicted: np.ndarray, truth: np.ndarray, grid: BevGrid) -> np.ndarray:
    """(3, layers, K) cells of intersection, union and truth for each class, in rings of RING around the vehicle.

    Args:
        predicted: (layers, rows, columns) bool.
        truth: (layers, rows, columns), non-zero where the class is, on the same grid.
    """
    order, starts = _rings(grid)
    true = truth.astype(bool)
    cells = np.stack([predicted & true, predicted | true, true]).reshape(3, len(true), -1)
    return np.add.reduceat(cells[..., order], starts, axis=2, dtype=np.int64)


@lru_cache(maxsize=8)
def _rings(grid: BevGrid) -> tuple[np.ndarray, np.ndarray]:
    """Flat indices of the cells from near to far, and the index of the first cell of each ring among them."""
    distance = np.linalg.norm(grid.centers().astype(np.float64), axis=2).ravel()
    order = np.argsort(distance, kind="stable")
    ring = (distance[order] // RING).astype(np.int64)
    return order, np.searchsorted(ring, np.arange(ring[-1] + 1))


class MapIou:
    """IoU per map class over all frames, as BEVFusion scores it (Liu et al., 2023, arXiv:2205.13542).

    Intersections and unions are summed over the frames before they are divided. For each class, BEVFusion reports the
    best IoU over seven thresholds, chosen on the scored frames; the IoU at 0.5 is reported as well.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.frames, self.names = 0, names
        self.counts = np.zeros((len(THRESHOLDS), 3, len(names)), np.int64)  # arguments of `ious`

    def add(self, probabilities: np.ndarray, truth: np.ndarray) -> None:
        """Count one frame.

        Args:
            probabilities: (layers, rows, columns) in [0, 1].
            truth: (layers, rows, columns), non-zero where the class is, on the same grid.
        """
        true = truth.astype(bool)
        for counts, threshold in zip(self.counts, THRESHOLDS, strict=True):
            predicted = probabilities.astype(np.float32) >= threshold
            counts += [np.count_nonzero(cells, axis=(1, 2)) for cells in (predicted & true, predicted | true, true)]
        self.frames += 1

    def result(self) -> dict[str, Any] | None:
        """`iou_max` and `iou_0.5`, each {class: IoU, "mean": over the classes}; None if no frame was added.

        A class without true cells in all frames has no IoU: it is None and not in the mean.
        """
        if self.frames == 0:
            return None
        per_threshold = ious(self.counts)
        return {
            "iou_max": self._named(per_threshold.max(axis=0)),
            "iou_0.5": self._named(per_threshold[THRESHOLDS == 0.5][0]),
        }

    def _named(self, values: np.ndarray) -> dict[str, float | None]:
        present = ~np.isnan(values)
        named = {
            name: float(value) if known else None
            for name, value, known in zip(self.names, values, present, strict=True)
        }
        return named | {"mean": float(values[present].mean()) if present.any() else None}
