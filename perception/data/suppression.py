"""Boxes that say again what a better box says already are left out, behind the graph. numpy only.

Heads that take every cell for a peak (`DetectionHead.suppression`) need it: those of mmdet3d, whose CenterHead does
the same. Boxes are upright, and compared as rectangles on the ground.
"""

from __future__ import annotations

import numpy as np

from perception.config import Suppression

_EDGE = 1e-9  # share of a box's side by which a point may lie outside and still count as on the edge


def survivors(boxes: np.ndarray, scores: np.ndarray, settings: Suppression, group: int) -> np.ndarray:
    """(S,) indices of the boxes of one group that stay, best first.

    Args:
        boxes: (K, >=8) x y z, w l h (m), sine and cosine of the yaw times any positive factor.
        scores: (K,).
        group: which of the head's groups.
    """
    centers = boxes[:, :3]
    inside = (centers >= settings.low).all(axis=1) & (centers <= settings.high).all(axis=1)
    index = np.flatnonzero(inside & (scores > settings.threshold))
    index = index[np.argsort(-scores[index], kind="stable")]
    if settings.kind == "circle":
        near = _distances(boxes[index, :2]) <= settings.radii[group] ** 2
    else:
        near = overlaps(boxes[index]) >= settings.overlap
    return index[_greedy(near, settings.most)]


def _greedy(near: np.ndarray, most: int) -> np.ndarray:
    """Of N boxes, best first, those that are near (N, N) no better one that stays; the first `most` of them."""
    stays, kept = np.ones(len(near), bool), []
    for i in range(len(near)):
        if stays[i]:
            kept.append(i)
            if len(kept) == most:
                break
            stays &= ~near[i]
    return np.array(kept, np.int64)


def _distances(centers: np.ndarray) -> np.ndarray:
    """(N, N) squared distances of (N, 2)."""
    return np.square(centers[:, None] - centers).sum(axis=-1)


def overlaps(boxes: np.ndarray) -> np.ndarray:
    """(N, N) intersection over union of the boxes (N, >=8), seen from above; above the diagonal only, else 0."""
    boxes = boxes.astype(np.float64)
    heading = boxes[:, 6:8] / np.maximum(np.sqrt(np.square(boxes[:, 6:8]).sum(axis=1, keepdims=True)), 1e-12)
    rectangles = np.concatenate([boxes[:, :2], boxes[:, [4, 3]], heading], axis=1)  # x y length width sin cos
    half = np.sqrt(np.square(rectangles[:, 2:4]).sum(axis=1)) / 2
    reach = np.square(half[:, None] + half)
    a, b = np.nonzero(np.triu(_distances(rectangles[:, :2]) < reach, k=1))
    shared = _intersections(rectangles[a], rectangles[b])
    area = rectangles[:, 2] * rectangles[:, 3]
    result = np.zeros((len(boxes), len(boxes)))
    result[a, b] = shared / np.maximum(area[a] + area[b] - shared, 1e-12)
    return result


def _intersections(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(P,) areas that rectangles a (P, 6) x y length width sin cos share with b (P, 6).

    The shared polygon is convex. Its corners are among the corners of each rectangle that lie in the other and the
    points where edges cross: at most 24, sorted here by their direction from their mean.
    """
    corners = [_corners(each, a[:, :2]) for each in (a, b)]  # from the middle of a, where numbers are small
    points = np.concatenate([*corners, _crossings(*corners)], axis=1)  # P 24 2
    valid = np.concatenate(
        [_holds(b, corners[0], a[:, :2]), _holds(a, corners[1], a[:, :2]), np.isfinite(points[:, 8:, 0])], axis=1
    )
    none = ~valid.any(axis=1)
    some = np.take_along_axis(points, valid.argmax(axis=1)[:, None, None], axis=1)  # a corner for those that are none
    points = np.where(valid[..., None], points, some)
    points = np.where(none[:, None, None], 0, points)
    spokes = points - points.mean(axis=1, keepdims=True)
    order = np.argsort(_direction(spokes), axis=1)
    x, y = np.moveaxis(np.take_along_axis(spokes, order[..., None], axis=1), -1, 0)
    return np.abs((x * np.roll(y, -1, axis=1) - y * np.roll(x, -1, axis=1)).sum(axis=1)) / 2


def _corners(rectangles: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """(P, 4, 2) in turn, relative to the origins (P, 2)."""
    x, y, length, width, sin, cos = (column[:, None] for column in rectangles.T)
    along, across = length / 2 * [1, -1, -1, 1], width / 2 * [1, 1, -1, -1]
    turned = np.stack([cos * along - sin * across, sin * along + cos * across], axis=-1)
    return turned + (np.concatenate([x, y], axis=1) - origin)[:, None]


def _holds(rectangles: np.ndarray, points: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """(P, 4) whether the points (P, 4, 2), relative to the origins (P, 2), lie in the rectangles or on their edges."""
    away = points - (rectangles[:, :2] - origin)[:, None]
    _, _, length, width, sin, cos = (column[:, None] for column in rectangles.T)
    along, across = cos * away[..., 0] + sin * away[..., 1], cos * away[..., 1] - sin * away[..., 0]
    edge = 0.5 + _EDGE
    return (np.abs(along) <= edge * length) & (np.abs(across) <= edge * width)


def _crossings(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(P, 16, 2) where each edge of polygons a (P, 4, 2) crosses each of b; NaN where they do not."""
    start, other = a[:, :, None], b[:, None]
    step, stride = np.roll(a, -1, axis=1)[:, :, None] - start, np.roll(b, -1, axis=1)[:, None] - other
    gap = other - start
    with np.errstate(divide="ignore", invalid="ignore"):
        across = _cross(step, stride)
        t, u = _cross(gap, stride) / across, _cross(gap, step) / across
    meet = (t >= 0) & (t <= 1) & (u >= 0) & (u <= 1)
    points = start + np.where(meet, t, np.nan)[..., None] * step
    return points.reshape(len(a), 16, 2)


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _direction(vectors: np.ndarray) -> np.ndarray:
    """A number that grows with the angle of the vectors (..., 2), without a trigonometric function."""
    x, y = vectors[..., 0], vectors[..., 1]
    slope = y / np.maximum(np.abs(x) + np.abs(y), 1e-300)
    return np.where(x >= 0, slope, np.where(y >= 0, 2 - slope, -2 - slope))
