"""Confusion of voxel classes, and the IoU from it. numpy only.

As Occ3D scores occupancy (Tian et al., "Occ3D: A Large-Scale 3D Occupancy Prediction Benchmark for Autonomous Driving",
NeurIPS 2023): over the voxels that the cameras, or the LiDAR, see.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from perception.tasks.rings import RING
from perception.voxels import VoxelGrid


def confusion(predicted: np.ndarray, truth: np.ndarray, seen: np.ndarray, count: int, grid: VoxelGrid) -> np.ndarray:
    """(rings, classes, classes) number of voxels by ring of RING around the vehicle, true and predicted class.

    Args:
        predicted, truth: (levels, rows, columns) classes.
        seen: (levels, rows, columns) bool, voxels that count.
        count: number of classes.
        grid: of the voxels.
    """
    ring = _rings(grid)
    number = int(ring.max()) + 1
    pair = truth[seen].astype(np.int64) * count + predicted[seen]
    index = np.broadcast_to(ring, truth.shape)[seen] * count**2 + pair
    return np.bincount(index, minlength=number * count**2).reshape(number, count, count)


@lru_cache(maxsize=8)
def _rings(grid: VoxelGrid) -> np.ndarray:
    """(rows, columns) int64 ring of each column of voxels."""
    x, y = np.moveaxis(grid.centers()[0, ..., :2].astype(np.float64), -1, 0)
    return np.asarray((np.hypot(x, y) // RING).astype(np.int64))


def parts(table: np.ndarray) -> np.ndarray:
    """(..., 3, classes - 1) intersection, union and true voxels of each class but free, from confusions (..., C, C)."""
    hits = np.diagonal(table, axis1=-2, axis2=-1)
    true, found = table.sum(axis=-1), table.sum(axis=-2)
    return np.stack([hits, true + found - hits, true], axis=-2)[..., :-1]


def ious(counts: np.ndarray) -> np.ndarray:
    """(..., classes) IoU of counts (..., 3, classes) of intersection, union and truth; NaN for classes in neither."""
    intersection, union = counts[..., 0, :].astype(np.float64), counts[..., 1, :]
    return np.divide(intersection, union, out=np.full(union.shape, np.nan), where=union > 0)


def geometric_iou(table: np.ndarray) -> float | None:
    """IoU of what is occupied, whatever its class, from a confusion (C, C); None if nothing is in either."""
    hits = table[:-1, :-1].sum()
    union = table.sum() - table[-1, -1]
    return float(hits / union) if union else None


def means(values: np.ndarray) -> np.ndarray:
    """(...) means of (..., N) over the numbers that are not NaN; NaN without any."""
    known = ~np.isnan(values)
    sums = np.where(known, values, 0.0).sum(axis=-1)
    return np.asarray(np.divide(sums, known.sum(axis=-1), out=np.full_like(sums, np.nan), where=known.any(axis=-1)))


def mean(values: np.ndarray) -> float | None:
    """Mean over the numbers that are not NaN; None without any."""
    return None if np.isnan(values).all() else float(means(values))
