"""Footprints of boxes on the ground: which places they cover, and how far other places are. numpy only."""

from __future__ import annotations

import numpy as np

from perception.frame import Boxes

PAIRS = 1 << 16  # of places and boxes; their offsets take 1 MB


def distances(places: np.ndarray, boxes: Boxes) -> np.ndarray:
    """(P, N) m on the ground from places (P, >=2) to the footprints of N boxes in the same frame; 0 inside."""
    offset = places[:, None, :2] - boxes.centers[:, :2]
    heading = boxes.rotations[:, :2, 0]
    along = np.abs((offset * heading).sum(axis=2))
    across = np.abs(offset[..., 1] * heading[:, 0] - offset[..., 0] * heading[:, 1])
    width, length = boxes.sizes[:, 0], boxes.sizes[:, 1]
    return np.hypot(np.maximum(along - length / 2, 0), np.maximum(across - width / 2, 0))


def covered(places: np.ndarray, boxes: Boxes, margin: float) -> np.ndarray:
    """(P,) bool: places within `margin` (m) of the footprint of any box, PAIRS of them at a time."""
    found, some = np.zeros(len(places), bool), max(1, PAIRS // max(1, len(boxes)))
    for i in range(0, len(places), some):
        found[i : i + some] = (distances(places[i : i + some], boxes) <= margin).any(axis=1)
    return found
