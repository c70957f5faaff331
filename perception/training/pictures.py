"""Crops of objects in pictures, pasted or masked from far to near. numpy and OpenCV only.

Wang et al., "PointAugmenting: Cross-modal augmentation for 3D object detection", CVPR 2021, section 3.3.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import cv2
import numpy as np

from perception.frame import Boxes

_NEAR = 0.5  # m along the optical axis; what is nearer is not projected
_FACE = np.array([[0, 1], [1, 2], [2, 3], [3, 0]])
_EDGES = np.concatenate([_FACE, _FACE + 4, np.stack([np.arange(4), np.arange(4, 8)], axis=1)])  # of Boxes.corners


class Place(NamedTuple):
    """Where an object is in a picture: rows top to bottom - 1, columns left to right - 1."""

    depth: float  # m along the optical axis, of its centre
    left: int
    top: int
    right: int
    bottom: int

    def of(self, picture: np.ndarray) -> np.ndarray:
        """View of the pixels there, (H, W, 3)."""
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


def painted(picture: np.ndarray, layers: Iterable[Layer]) -> np.ndarray:
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
