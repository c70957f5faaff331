"""Counts the LiDAR points inside boxes. numpy only."""

from __future__ import annotations

import numpy as np


def points_in_boxes(points: np.ndarray, centers: np.ndarray, sizes: np.ndarray, yaws: np.ndarray) -> np.ndarray:
    """(B,) number of points (N, 3) inside each upright box, faces included, as the devkit's `points_in_box` counts.

    centers (B, 3) m, sizes (B, 3) width, length, height m, yaws (B,) rad.
    """
    points = points[np.argsort(points[:, 0], kind="stable")]
    radius = np.hypot(sizes[:, 0], sizes[:, 1]) / 2
    first = np.searchsorted(points[:, 0], centers[:, 0] - radius)
    last = np.searchsorted(points[:, 0], centers[:, 0] + radius, side="right")
    counts = np.zeros(len(centers), np.int64)
    for n in range(len(centers)):
        x, y, z = (points[first[n] : last[n]] - centers[n]).T
        along = np.abs(np.cos(yaws[n]) * x + np.sin(yaws[n]) * y) <= sizes[n, 1] / 2
        across = np.abs(np.cos(yaws[n]) * y - np.sin(yaws[n]) * x) <= sizes[n, 0] / 2
        counts[n] = np.count_nonzero(along & across & (np.abs(z) <= sizes[n, 2] / 2))
    return counts
