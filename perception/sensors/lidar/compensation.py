"""Carries the points of a sweep from their own times to one: motion compensation within the sweep. numpy only."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from perception.rotations import axes_and_angles

_PART = 8192  # points that are moved together, so that they stay in the cache


class Motion(NamedTuple):
    """When the points of a sweep were measured, and where the vehicle was meanwhile. Times are in s after the sweep's.

    Between two poses the vehicle moves along a straight line and turns about one axis, both at constant speed (slerp:
    Shoemake, "Animating rotation with quaternion curves", 1985); beyond the first and the last it goes on like that.
    """

    point_times: np.ndarray  # (N,) float64
    times: np.ndarray  # (M,) float64 of the poses, ascending; M >= 2
    poses: np.ndarray  # (M, 4, 4) float64 global_from_ego


def compensated(
    points: np.ndarray, motion: Motion, ego_from_lidar: np.ndarray, reference_from_global: np.ndarray
) -> np.ndarray:
    """(N, 3) points in the reference frame, each placed by the vehicle's pose at its own time.

    A share s of the way from one pose to the next, which are an angle a and the axis k apart, the rotation is
    R (I + sin(sa) K + (1 - cos(sa)) K^2) with K x = k x x (Rodrigues); so points that share two poses need one product
    with a matrix.

    Args:
        points: (N, 3) float32 or float64, in the LiDAR's frame; the result has their type.
        ego_from_lidar: (4, 4) mounting.
        reference_from_global: (4, 4).
    """
    matrices, angles = _stages(motion.poses, ego_from_lidar, reference_from_global)
    matrices = matrices.astype(points.dtype)
    stage = np.searchsorted(motion.times[1:-1], motion.point_times, side="right").astype(np.uint16)
    sorted_already = (stage[1:] >= stage[:-1]).all()  # as most drivers write them
    order = None if sorted_already else np.argsort(stage, kind="stable")  # a radix sort
    placed = np.empty((len(points), 3), points.dtype)
    lasts = np.cumsum(np.bincount(stage, minlength=len(angles)))
    for i, (first, last) in enumerate(pairwise([0, *lasts])):
        for start in range(first, last, _PART):
            part = slice(start, min(start + _PART, last))
            own = part if order is None else order[part]
            share = (motion.point_times[own] - motion.times[i]) / (motion.times[i + 1] - motion.times[i])
            placed[own] = _moved(points[own], share, matrices[i], angles[i])
    return placed


def _moved(points: np.ndarray, share: np.ndarray, matrix: np.ndarray, angle: float) -> np.ndarray:
    """(N, 3) points in the reference frame, between the same two poses; matrix (9, 5) is that of `_stages`."""
    # A row for each of x y z, because numpy is slow along an axis of length three.
    rows = np.empty((5, len(points)), points.dtype)
    rows[:3], rows[3], rows[4] = points.T, 1, share
    half = (angle / 2 * share).astype(points.dtype)
    sine, cosine = np.sin(half), np.cos(half)
    moved = matrix @ rows
    return np.asarray((moved[:3] + moved[3:6] * (2 * sine * cosine) + moved[6:] * (2 * sine * sine)).T)


def _stages(
    poses: np.ndarray, ego_from_lidar: np.ndarray, reference_from_global: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """From each pose to the next: (M-1, 9, 5) the matrices of R, RK and RK^2 in the reference frame, one below the
    other, of x y z 1 in the LiDAR's frame and the share, which takes part in the first; and (M-1,) the angle."""
    rotations = poses[:, :3, :3]
    axes, angles = axes_and_angles(rotations[:-1].transpose(0, 2, 1) @ rotations[1:])
    cross = np.cross(np.eye(3), axes[:, None])
    parts = np.zeros((len(angles), 3, 4, 4))
    for i, turn in enumerate((np.eye(3), cross, cross @ cross)):
        parts[:, i, :3, :3] = rotations[:-1] @ turn
    parts[:, 0, :3, 3], parts[:, 0, 3, 3] = poses[:-1, :3, 3], 1
    matrices = np.zeros((len(angles), 3, 3, 5))
    matrices[..., :4] = (reference_from_global @ parts @ ego_from_lidar)[:, :, :3]
    matrices[:, 0, :, 4] = np.diff(poses[:, :3, 3], axis=0) @ reference_from_global[:3, :3].T
    return matrices.reshape(-1, 9, 5), angles
