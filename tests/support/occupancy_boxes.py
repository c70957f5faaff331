"""Boxes as voxels."""

from dataclasses import replace

import numpy as np

from perception.frame import Boxes


def boxes(*rows: tuple[float, float, float, float, float, int]) -> Boxes:
    """Of x, y, width, length, yaw and points."""
    x, y, width, length, yaw, points = np.array(rows, np.float64).reshape(-1, 6).T
    n, half = len(x), np.full(len(x), 0.5)
    made = Boxes.from_yaws(
        np.column_stack([x, y, half]),
        np.column_stack([width, length, 2 * half]),
        yaw,
        np.zeros((n, 2)),
        -np.ones(n),
        -np.ones(n),
        np.ones(n),
    )
    return replace(made, num_points=points.astype(np.int64))
