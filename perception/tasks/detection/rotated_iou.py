"""Rotated IoU of box footprints, and NMS by it. numpy only."""

from __future__ import annotations

import numpy as np


def rotated_iou(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(N,) IoU of the footprint of one box with those of N others.

    Clips each polygon to the first box by clamping it in that box's frame: parts outside are clamped onto the border,
    where they have no area. The clamped outline is straight between its intersections with the lines of the box's
    sides.

    Args:
        one: (6,) x, y, width, length, sine and cosine of the heading.
        others: (N, 6).
    """
    sin, cos = one[4:6]
    x, y = (others[:, :2] - one[:2]).T
    middle = np.stack([x * cos + y * sin, y * cos - x * sin], axis=-1)  # N 2
    turned_sin, turned_cos = others[:, 4] * cos - others[:, 5] * sin, others[:, 5] * cos + others[:, 4] * sin
    ahead = others[:, 3:4] / 2 * np.stack([turned_cos, turned_sin], axis=-1)
    left = others[:, 2:3] / 2 * np.stack([-turned_sin, turned_cos], axis=-1)
    corners = np.stack([ahead - left, ahead + left, left - ahead, -ahead - left], axis=1) + middle[:, None]  # N 4 2
    sides = np.roll(corners, -1, axis=1) - corners
    half = np.array([one[3], one[2]]) / 2
    to_lines = np.concatenate([-half - corners, half - corners], axis=-1)  # N 4 4, along x y x y
    steps = np.tile(sides, 2)
    crossed = np.divide(to_lines, steps, out=np.zeros_like(steps), where=steps != 0).clip(0, 1)
    crossed = np.concatenate([np.zeros_like(crossed[..., :1]), np.sort(crossed, axis=-1)], axis=-1)  # N 4 5
    outline = corners[:, :, None] + crossed[..., None] * sides[:, :, None]
    x, y = outline.clip(-half, half).reshape(-1, 20, 2).transpose(2, 0, 1)
    shared = (x * np.roll(y, -1, axis=1) - np.roll(x, -1, axis=1) * y).sum(axis=1) / 2
    union = one[2] * one[3] + others[:, 2] * others[:, 3] - shared
    return np.divide(shared, union, out=np.zeros_like(union), where=union > 0)


def footprints(boxes: np.ndarray) -> np.ndarray:
    """(N, 6) float64 for `rotated_iou`, from boxes (N, >=8): x y z, w l h, sine and cosine of the yaw (any scale)."""
    boxes = boxes.astype(np.float64)
    length = np.sqrt(np.square(boxes[:, 6:8]).sum(axis=1, keepdims=True))
    heading = np.divide(boxes[:, 6:8], length, out=np.tile([0.0, 1.0], (len(boxes), 1)), where=length > 0)
    return np.concatenate([boxes[:, [0, 1, 3, 4]], heading], axis=1)


def rotated_nms(footprints: np.ndarray, largest: float) -> np.ndarray:
    """Indices of the boxes after greedy NMS: a box is suppressed by a better one with an IoU of `largest` or more.

    Args:
        footprints: (N, 6) as from `footprints`, best first.
        largest: IoU.
    """
    reach = np.sqrt(np.square(footprints[:, 2:4]).sum(axis=1)) / 2
    there, kept = np.ones(len(footprints), bool), []
    for i, footprint in enumerate(footprints):
        if not there[i]:
            continue
        kept.append(i)
        away = np.square(footprints[i + 1 :, :2] - footprint[:2]).sum(axis=1)
        near = i + 1 + np.flatnonzero(there[i + 1 :] & (away < np.square(reach[i + 1 :] + reach[i])))
        there[near[rotated_iou(footprint, footprints[near]) >= largest]] = False
    return np.array(kept, np.int64)
