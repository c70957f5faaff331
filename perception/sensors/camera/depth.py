"""Depth labels for the cameras from the points of the LiDAR. numpy only."""

from __future__ import annotations

import numpy as np

from perception.config import Depth, Image


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
