"""Which footprints overlap, and which points an object gave while it moved. numpy only."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from perception.frame import Boxes


def footprints(boxes: Boxes) -> np.ndarray:
    """(N, 6) of upright boxes in the ground plane: x, y, half length, half width (m), cosine and sine of the yaw."""
    yaws = boxes.yaws
    columns = [boxes.centers[:, 0], boxes.centers[:, 1], boxes.sizes[:, 1] / 2, boxes.sizes[:, 0] / 2]
    return np.stack([*columns, np.cos(yaws), np.sin(yaws)], axis=1)


def overlapping(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(N,) bool: whether one footprint (6,) shares area with each of N others (N, 6).

    Two rectangles are apart if the line of one of their four sides separates them (Gottschalk et al., 1996).
    """
    x, y, length, width, cos, sin = others.T
    dx, dy = x - one[0], y - one[1]
    turned_cos, turned_sin = np.abs(cos * one[4] + sin * one[5]), np.abs(sin * one[4] - cos * one[5])
    apart = np.abs(dx * one[4] + dy * one[5]) >= one[2] + length * turned_cos + width * turned_sin
    apart |= np.abs(dy * one[4] - dx * one[5]) >= one[3] + length * turned_sin + width * turned_cos
    apart |= np.abs(dx * cos + dy * sin) >= length + one[2] * turned_cos + one[3] * turned_sin
    apart |= np.abs(dy * cos - dx * sin) >= width + one[2] * turned_sin + one[3] * turned_cos
    return ~apart


def points_of(points: np.ndarray, boxes: Boxes, moving: bool = True) -> Iterator[np.ndarray]:
    """For each box, the indices of the points (N, 5) inside it, faces included.

    Args:
        points: x y z (m), intensity, dt (s), in the frame of the boxes.
        moving: whether a box is, for a point of age dt, where it was then at its velocity; unknown ones are zero.
    """
    x, y, dt = (np.ascontiguousarray(points[:, column]) for column in (0, 1, 4))
    oldest = float(np.abs(dt).max(initial=0)) if moving else 0.0
    for center, size, rotation, velocity in zip(
        boxes.centers, boxes.sizes, boxes.rotations, np.nan_to_num(boxes.velocities), strict=True
    ):
        reach = np.linalg.norm(size) / 2 + np.abs(velocity[:2]) * oldest
        near = np.flatnonzero((np.abs(x - center[0]) <= reach[0]) & (np.abs(y - center[1]) <= reach[1]))
        offsets = points[near, :3] - center
        if moving:
            offsets += dt[near, None] * velocity
        yield near[(np.abs(offsets @ rotation) <= size[[1, 0, 2]] / 2).all(axis=1)]
