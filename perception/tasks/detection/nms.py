"""Non-maximum suppression on the CPU, after the engine, of upright boxes by their footprints. numpy only."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from perception.geometry import unit_headings
from perception.tasks.detection.config import Suppression


def rotated_iou(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(N,) IoU of one footprint (6,) x y w l, sine and cosine of the heading, with those of N others (N, 6).

    Clips each polygon to the first box by clamping it in that box's frame: parts outside are clamped onto the border,
    where they have no area. The clamped outline is straight between its intersections with the lines of the box's
    sides.
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
    return np.concatenate([boxes[:, [0, 1, 3, 4]], unit_headings(boxes[:, 6:8])], axis=1)


def non_maximum_suppression(outputs: Mapping[str, np.ndarray], settings: Suppression, group: int) -> np.ndarray:
    """(S,) indices of the remaining boxes of one of the head's groups, by its outputs boxes (K, >=8), scores and
    labels."""
    boxes, scores, labels = (outputs[name] for name in ("boxes", "scores", "labels"))
    stays = scores > settings.threshold
    if settings.low is not None and settings.high is not None:
        stays &= ((boxes[:, :3] >= settings.low) & (boxes[:, :3] <= settings.high)).all(axis=1)
    index = np.flatnonzero(stays)
    index = index[np.argsort(-scores[index], kind="stable")]
    if settings.within == "group":
        return index[_survivors(boxes[index], settings, group)]
    parts = [(label, index[labels[index] == label]) for label in np.unique(labels[index])]
    return np.concatenate([index[:0], *(own[_survivors(boxes[own], settings, label)] for label, own in parts)])


def _survivors(boxes: np.ndarray, settings: Suppression, part: int) -> np.ndarray:
    """Indices of the boxes, best first, that remain after greedy NMS; `part` is the index of their group or class."""
    if settings.kind == "circle":
        x, y = boxes[:, :2].T.copy()  # numpy is slow along an axis of length two
        nearest = settings.radii[part] ** 2
        kept = greedy(len(boxes), lambda i, rest: np.square(x[i] - x[rest]) + np.square(y[i] - y[rest]) <= nearest)
    else:
        kept = rotated_nms(footprints(boxes), settings.overlap)
    return kept[: settings.most]


def rotated_nms(footprints: np.ndarray, largest: float) -> np.ndarray:
    """Indices of the boxes, best first, that no better one overlaps with an IoU of `largest` or more."""
    reach = np.sqrt(np.square(footprints[:, 2:4]).sum(axis=1)) / 2

    def suppresses(i: int, rest: np.ndarray) -> np.ndarray:
        away = np.square(footprints[rest, :2] - footprints[i, :2]).sum(axis=1)
        near = away < np.square(reach[rest] + reach[i])
        near[near] = rotated_iou(footprints[i], footprints[rest[near]]) >= largest
        return near

    return greedy(len(footprints), suppresses)


def greedy(count: int, suppresses: Callable[[int, np.ndarray], np.ndarray]) -> np.ndarray:
    """Indices of the boxes, best first, that no better remaining box suppresses.

    Args:
        suppresses: a box and (M,) worse ones -> (M,) bool, which of these it suppresses.
    """
    rest, kept = np.arange(count), []
    while len(rest):
        best, rest = int(rest[0]), rest[1:]
        kept.append(best)
        rest = rest[~suppresses(best, rest)]
    return np.array(kept, np.int64)
