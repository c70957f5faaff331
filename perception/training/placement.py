"""Where objects are: footprints that overlap, points inside boxes while these move, and rectangles in pictures.

Crops are pasted into pictures or masked from far to near, as in Wang et al., "PointAugmenting: Cross-modal augmentation
for 3D object detection", CVPR 2021, section 3.3. numpy and OpenCV only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import cv2
import numpy as np

from perception.frame import Boxes

_NEAR = 0.5  # m along the optical axis; what is nearer is not projected
_FACE = np.array([[0, 1], [1, 2], [2, 3], [3, 0]])
_EDGES = np.concatenate([_FACE, _FACE + 4, np.stack([np.arange(4), np.arange(4, 8)], axis=1)])  # of Boxes.corners


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


class Place(NamedTuple):
    """Where an object is in a picture: rows top to bottom - 1, columns left to right - 1."""

    depth: float  # m along the optical axis, of its centre
    left: int
    top: int
    right: int
    bottom: int

    def of(self, picture: np.ndarray) -> np.ndarray:
        return picture[self.top : self.bottom, self.left : self.right]


class Layer(NamedTuple):
    """What to paint at a place: a crop (H, W, 3) uint8, scaled to it; None: the picture's mean colour."""

    place: Place
    crop: np.ndarray | None


def places(boxes: Boxes, image_from_reference: np.ndarray, shape: tuple[int, ...]) -> list[Place | None]:
    """The rectangle around each projected box, within the picture; None for boxes outside or behind.

    Args:
        image_from_reference: (3, 4) projection to pixels; integer coordinates are pixel centres.
        shape: of the picture, (height, width, ...).
    """
    rotation, shift = image_from_reference[:, :3], image_from_reference[:, 3]
    depths = boxes.centers @ rotation[2] + shift[2]
    seen = boxes.corners() @ rotation.T + shift  # N 8 3
    return [_place(corners, float(depth), shape) for corners, depth in zip(seen, depths, strict=True)]


def _place(corners: np.ndarray, depth: float, shape: tuple[int, ...]) -> Place | None:
    start, end = corners[_EDGES[:, 0]], corners[_EDGES[:, 1]]
    crossing = (start[:, 2] < _NEAR) != (end[:, 2] < _NEAR)
    start, end = start[crossing], end[crossing]
    share = (_NEAR - start[:, 2:]) / (end[:, 2:] - start[:, 2:])
    outline = np.concatenate([corners[corners[:, 2] >= _NEAR], start + share * (end - start)])
    if not len(outline):
        return None
    pixels = outline[:, :2] / outline[:, 2:]
    left, top = np.floor(pixels.min(axis=0) + 0.5).clip(0).astype(int)
    right, bottom = np.ceil(pixels.max(axis=0) + 0.5).clip(0, shape[1::-1]).astype(int)
    return Place(depth, int(left), int(top), int(right), int(bottom)) if left < right and top < bottom else None


def paint(picture: np.ndarray, layers: Iterable[Layer]) -> np.ndarray:
    """A copy of the picture (H, W, 3) uint8 with these layers, painted from far to near."""
    result, mean = picture.copy(), None
    for place, crop in sorted(layers, key=lambda layer: -layer.place.depth):
        target = place.of(result)
        if crop is None:
            mean = picture.mean(axis=(0, 1)).round().astype(np.uint8) if mean is None else mean
            target[:] = mean
        elif crop.shape == target.shape:
            target[:] = crop
        else:
            target[:] = cv2.resize(crop, target.shape[1::-1], interpolation=cv2.INTER_AREA)
    return result
