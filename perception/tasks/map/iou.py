"""Intersection over union of the HD map, per class. numpy only."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from perception.grid import BevGrid
from perception.tasks.metric import RING

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


def count_thresholds(probabilities: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(7, 3, layers) cells of intersection, union and truth for each class at each of THRESHOLDS.

    Args:
        probabilities: (layers, rows, columns) in [0, 1].
        truth: (layers, rows, columns), non-zero where the class is, on the same grid.
    """
    true, given = truth.astype(bool), probabilities.astype(np.float32)
    every = [given >= threshold for threshold in THRESHOLDS]
    return np.array(
        [[np.count_nonzero(cells, axis=(1, 2)) for cells in (found & true, found | true, true)] for found in every]
    )
