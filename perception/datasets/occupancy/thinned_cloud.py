"""Points with classes, gathered over a drive in memory that grows with the space, not with the time. numpy only."""

from __future__ import annotations

import numpy as np

_BUFFER = 1 << 20  # points, before they are thinned


class ThinnedCloud:
    """One point, the first, for each class in each cell of a regular grid, and how many it stands for.

    Args:
        cell: m, edge length of a cell.
        anchor: (3,) m, near the points, for points that are stored in float32.
    """

    def __init__(self, cell: float, anchor: np.ndarray) -> None:
        self._cell, self._anchor = cell, anchor
        self._kept = (np.zeros((0, 3), np.float32), np.zeros(0, np.int16), np.zeros(0, np.int64))
        self._new: list[tuple[np.ndarray, np.ndarray]] = []
        self._waiting = 0

    def add(self, points: np.ndarray, classes: np.ndarray) -> None:
        """points (N, 3) m, classes (N,) int."""
        self._new.append(((points - self._anchor).astype(np.float32), classes.astype(np.int16)))
        self._waiting += len(points)
        if self._waiting > max(_BUFFER, len(self._kept[0])):  # so that all thinning together takes n log n
            self._thin()

    def content(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(N, 3) float64 points (m), (N,) int16 classes, (N,) int64 how many points each stands for."""
        self._thin()
        points, classes, counts = self._kept
        return points.astype(np.float64) + self._anchor, classes, counts

    def _thin(self) -> None:
        if not self._waiting:
            return
        points = np.concatenate([self._kept[0], *(points for points, _ in self._new)])
        classes = np.concatenate([self._kept[1], *(classes for _, classes in self._new)])
        counts = np.concatenate([self._kept[2], np.ones(self._waiting, np.int64)])
        kinds = int(np.ptp(classes)) + 1
        key = cell_keys(points.astype(np.float64), self._cell) * kinds + (classes - classes.min())
        _, first, number = np.unique(key, return_index=True, return_inverse=True)
        total = np.bincount(number.reshape(-1), counts, len(first)).astype(np.int64)
        order = np.argsort(first)
        self._kept = points[first[order]], classes[first[order]], total[order]
        self._new, self._waiting = [], 0


def cell_keys(points: np.ndarray, cell: float) -> np.ndarray:
    """(N,) int64, equal for points (N, 3) m that are in the same cell of a regular grid; N > 0."""
    place = np.floor(points / cell).astype(np.int64)
    place -= place.min(axis=0)
    _, rows, levels = (place.max(axis=0) + 1).tolist()
    return np.asarray((place[:, 0] * rows + place[:, 1]) * levels + place[:, 2])
