"""Corrects the heights of a drive's poses by the ground that the LiDAR meets. numpy only."""

from __future__ import annotations

import numpy as np

from perception.datasets.occupancy.returns import Returns, moved

_COLUMN = 0.5  # m
_NEAR, _HIGH = 20.0, 1.0  # m from the vehicle, and from the height of its wheels, that the ground is sought
_ENOUGH = 50  # columns that two keyframes must share


class Levels:
    """How far each keyframe of a drive must be raised, so that all are on the same ground as the first.

    The poses of nuScenes have no height: z is 0 all along, although the vehicle drives up and down hills. The lowest
    points of columns that a keyframe shares with the one before tell the difference; its median does not depend on
    what moves.
    """

    def __init__(self) -> None:
        self._before = (np.zeros(0, np.int64), np.zeros(0))
        self._height = 0.0

    def next(self, returns: Returns, global_from_ego: np.ndarray) -> float:
        """m to add to z of all that is measured at the next keyframe.

        Args:
            returns: of the keyframe alone, in the global frame.
        """
        keys, lowest = _ground(returns.points, global_from_ego)
        _, here, there = np.intersect1d(keys, self._before[0], assume_unique=True, return_indices=True)
        if len(here) >= _ENOUGH:
            self._height -= float(np.median(lowest[here] - self._before[1][there]))
        self._before = keys, lowest
        return self._height


def _ground(points: np.ndarray, global_from_ego: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(C,) keys of the columns around the vehicle, ascending, and (C,) z of the lowest point in each, m."""
    x, y, z = moved(points, np.linalg.inv(global_from_ego)).T
    points = points[(np.hypot(x, y) < _NEAR) & (np.abs(z) < _HIGH)]
    points = points[np.argsort(points[:, 2], kind="stable")]
    column, row = np.floor(points[:, :2] / _COLUMN).astype(np.int64).T
    keys, first = np.unique((column << 32) + row, return_index=True)
    return keys, points[first, 2]
