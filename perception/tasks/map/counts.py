"""Cells of the map that are right and wrong, in rings around the vehicle to score any range. numpy only."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from perception.frame import MAP_CLASSES
from perception.grid import BevGrid

RING = 10.0  # m


def predicted_cells(probabilities: np.ndarray) -> np.ndarray:
    """(6, rows, columns) bool: cells where each class is predicted, at a probability of 0.5 or more."""
    return np.asarray(probabilities >= np.float32(0.5))


def count_rings(predicted: np.ndarray, truth: np.ndarray, grid: BevGrid) -> np.ndarray:
    """(3, 6, K) of each class and ring of 10 m: cells of the intersection, of the union, and where the class is.

    Args:
        predicted: (6, rows, columns) bool.
        truth: (6, rows, columns), non-zero where the class is, on the same grid.
    """
    order, starts = _rings(grid)
    present = truth.astype(bool)
    cells = np.stack([predicted & present, predicted | present, present]).reshape(3, len(MAP_CLASSES), -1)
    return np.add.reduceat(cells[..., order], starts, axis=2, dtype=np.int64)


@lru_cache(maxsize=8)
def _rings(grid: BevGrid) -> tuple[np.ndarray, np.ndarray]:
    """Cells from near to far, and where among them each ring begins."""
    distance = np.linalg.norm(grid.centers().astype(np.float64), axis=2).ravel()
    order = np.argsort(distance, kind="stable")
    ring = (distance[order] // RING).astype(np.int64)
    return order, np.searchsorted(ring, np.arange(ring[-1] + 1))


def ious(counts: np.ndarray) -> np.ndarray:
    """(..., 6) intersection over union of counts (..., 3, 6); NaN for a class that is nowhere in truth."""
    intersection, union, present = np.moveaxis(counts.astype(np.float64), -2, 0)
    return np.divide(intersection, union, out=np.full_like(union, np.nan), where=present > 0)


def rings(bounds: tuple[float, float] | None) -> slice:
    """Which rings of `count_rings` lie in a range of multiples of 10 m; None: all."""
    return slice(None) if bounds is None else slice(int(bounds[0] // RING), int(bounds[1] // RING))
