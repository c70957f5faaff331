"""The network's picture of a recorded one, and depth labels for it from the points of the LiDAR. numpy only.

The arithmetic of pictures is on integers, so that every runtime of a bundle makes the same picture in every bit.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from perception.sensors.camera.config import Depth, Image

STEPS = 256  # of a pixel, to which places between pixels are rounded


def fit_width(recorded: tuple[int, ...], size: Image) -> np.ndarray:
    """(3, 3) network pixels from recorded pixels: scale to the network's width and keep the bottom rows.

    This crops the sky; an image that is too low is padded with black rows at the top. Integer coordinates are pixel
    centres, so scaling by s maps u to s (u + 0.5) - 0.5.
    """
    height, width = recorded[:2]
    scale = size.width / width
    shift = 0.5 * scale - 0.5
    return np.array([[scale, 0, shift], [0, scale, shift + size.height - scale * height], [0, 0, 1]])


def warp(recorded: np.ndarray, affine: np.ndarray, size: Image, into: np.ndarray | None = None) -> np.ndarray:
    """(height, width, 3) uint8 image in which pixel affine @ p shows the recorded pixel p; black outside of it.

    Reduction by an integer factor is done by area averaging first, because bilinear interpolation would alias.
    """
    (a, b, x), (c, d, y) = affine[:2].tolist()
    determinant = a * d - b * c
    factor = int(1 / math.sqrt(abs(determinant)))
    if factor > 1:
        recorded = _reduced(recorded, factor)
        middle = 0.5 * factor - 0.5
        x, y = x + (a * middle + b * middle), y + (c * middle + d * middle)
        a, b, c, d = a * factor, b * factor, c * factor, d * factor
    image = np.empty((size.height, size.width, 3), np.uint8) if into is None else into
    columns, rows = np.arange(size.width) - x, np.arange(size.height) - y
    if b == 0 and c == 0:
        image[:] = _interpolate(recorded, _taps(rows / d, len(recorded)), _taps(columns / a, recorded.shape[1]))
    else:
        determinant = a * d - b * c
        across = (d * columns - b * rows[:, None]) / determinant
        down = (a * rows[:, None] - c * columns) / determinant
        image[:] = _interpolate_turned(recorded, _taps(down, len(recorded)), _taps(across, recorded.shape[1]))
    return image


class _Taps(NamedTuple):
    """The two pixels on both sides of places along an axis, and their weights in STEPS; 0 outside of the picture."""

    low: np.ndarray
    high: np.ndarray
    low_weight: np.ndarray
    high_weight: np.ndarray


def _taps(places: np.ndarray, count: int) -> _Taps:
    place = np.rint(places.clip(-2, count + 1) * STEPS).astype(np.int64)
    low, rest = place // STEPS, place % STEPS
    return _Taps(
        low.clip(0, count - 1),
        (low + 1).clip(0, count - 1),
        np.where((low >= 0) & (low < count), STEPS - rest, 0).astype(np.uint16),
        np.where((low >= -1) & (low < count - 1), rest, 0).astype(np.uint16),
    )


def _interpolate(recorded: np.ndarray, rows: _Taps, columns: _Taps) -> np.ndarray:
    """The image whose rows and columns are between those of the recorded one: rows first, in sums below 2^16."""
    mixed = recorded[rows.low] * rows.low_weight[:, None, None]
    mixed += recorded[rows.high] * rows.high_weight[:, None, None]
    # np.take, because indexing is slow where only three numbers are together.
    image = mixed.take(columns.low, 1) * columns.low_weight.astype(np.uint32)[:, None]
    image += mixed.take(columns.high, 1) * columns.high_weight.astype(np.uint32)[:, None]
    return np.asarray(_rounded(image))


def _interpolate_turned(recorded: np.ndarray, rows: _Taps, columns: _Taps) -> np.ndarray:
    """The image of any affine transformation, which takes longer; taps are (height, width)."""
    pixels, width = recorded.reshape(-1, 3), recorded.shape[1]
    image = np.zeros((*rows.low.shape, 3), np.uint32)
    for row, down in ((rows.low, rows.low_weight), (rows.high, rows.high_weight)):
        for column, across in ((columns.low, columns.low_weight), (columns.high, columns.high_weight)):
            image += pixels.take(row * width + column, 0) * (down.astype(np.uint32) * across)[..., None]
    return np.asarray(_rounded(image))


def _rounded(sums: Any) -> Any:
    sums += STEPS * STEPS // 2
    return sums // (STEPS * STEPS)


def _reduced(recorded: np.ndarray, factor: int) -> np.ndarray:
    """(H / factor, W / factor, 3) uint8, rounded up: the rounded mean of each square of pixels.

    The last row and column are repeated where the picture ends within a square.
    """
    if any(side % factor for side in recorded.shape[:2]):
        beyond = [(0, -side % factor) for side in recorded.shape[:2]]
        recorded = np.pad(recorded, [*beyond, (0, 0)], mode="edge")
    sums: Any = recorded[::factor].astype(np.uint32 if factor > 16 else np.uint16)
    for i in range(1, factor):
        sums += recorded[i::factor]
    reduced, flat = np.empty((len(sums), recorded.shape[1] // factor, 3), np.uint8), sums.reshape(len(sums), -1)
    for channel in range(3):  # numpy is slow along an axis of length three
        total = flat[:, channel :: 3 * factor].copy()
        for i in range(1, factor):
            total += flat[:, channel + 3 * i :: 3 * factor]
        total += factor * factor // 2
        reduced[..., channel] = total // (factor * factor)
    return reduced


def depth_labels(
    points: np.ndarray | None,
    image_from_points: np.ndarray,
    image: Image,
    cells: tuple[int, int],
    depth: Depth,
) -> np.ndarray:
    """(N, h, w) float32 depth of the nearest point in each feature cell of N cameras, m; 0 without a label.

    Li et al., "BEVDepth: Acquisition of reliable depth for multi-view 3D object detection", AAAI 2023, section 3.1. The
    label is the depth along the optical axis that the image shows. A similarity of the reference frame does not change
    it: the third row of the projections (N, 3, 4) to network pixels undoes its scale, as in the lift. A cell whose
    nearest point is outside [near, far) has no label, because what lies behind that point is hidden. Points are those
    of the keyframe only, because earlier sweeps smear what moves.
    """
    (rows, columns), labels = cells, np.full((len(image_from_points), *cells), np.inf)
    for label, matrix in zip(labels, image_from_points.astype(np.float64), strict=True):
        x, y, along = matrix[:, :3] @ (np.zeros((0, 3)) if points is None else points[:, :3]).T + matrix[:, 3:]
        ahead = along > 0
        x, y, along = x[ahead], y[ahead], along[ahead]
        # Integer coordinates are pixel centres.
        column = np.floor((x / along + 0.5) * columns / image.width)
        row = np.floor((y / along + 0.5) * rows / image.height)
        seen = (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
        cell = (row[seen].astype(np.int64), column[seen].astype(np.int64))
        np.minimum.at(label, cell, along[seen])
    return np.where((labels >= depth.near) & (labels < depth.far), labels, 0).astype(np.float32)
