"""Accumulates LiDAR sweeps in one frame of reference, with motion compensation. numpy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from perception.geometry import axes_and_angles, move
from perception.grid import Reference
from perception.rig import Box

_PART = 8192  # points that are moved together, so that they stay in the cache


class SweepMotion(NamedTuple):
    """When the points of a sweep were measured, and where the vehicle was meanwhile. Times are in s after the sweep's.

    Between two poses the vehicle moves along a straight line and turns about one axis, both at constant speed (slerp:
    Shoemake, "Animating rotation with quaternion curves", 1985); beyond the first and the last it goes on like that.
    """

    point_times: np.ndarray  # (N,) float64
    times: np.ndarray  # (M,) float64 of the poses, ascending; M >= 2
    poses: np.ndarray  # (M, 4, 4) float64 global_from_ego


def compensate(
    points: np.ndarray, motion: SweepMotion, ego_from_lidar: np.ndarray, reference_from_global: np.ndarray
) -> np.ndarray:
    """(N, 3) points of the LiDAR's frame in the reference frame, each placed by the vehicle's pose at its own time.

    A share s of the way from one pose to the next, which are an angle a and the axis k apart, the rotation is
    R (I + sin(sa) K + (1 - cos(sa)) K^2) with K x = k x x (Rodrigues); so points that share two poses need one product
    with a matrix.
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
            placed[own] = _move_between(points[own], share, matrices[i], angles[i])
    return placed


def _move_between(points: np.ndarray, share: np.ndarray, matrix: np.ndarray, angle: float) -> np.ndarray:
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


ROOF = 1.0  # m, half the side of the square around the sensor with returns from the roof, as in the devkit
OLDEST = 1.0  # s before the frame, of a sweep that is joined, where no data set lists a keyframe's sweeps


class Sweep(NamedTuple):
    """One revolution of the LiDAR, and its pose."""

    points: np.ndarray  # (N, 5) float32 x y z (m, sensor frame), intensity (0-255), ring
    timestamp: int  # us
    global_from_ego: np.ndarray  # (4, 4) at the sweep's time
    ego_from_lidar: np.ndarray  # (4, 4)
    motion: SweepMotion | None = None  # of the vehicle during the sweep; None: all points are of the sweep's time
    times: np.ndarray | None = None  # (N,) us, of the points; None: all at the timestamp
    classes: np.ndarray | None = None  # (N,) int16 annotated class of the points; None: not annotated


class Cloud(NamedTuple):
    """What a `Frame` holds of each point, under its names."""

    points: np.ndarray | None = None
    sweep_of_point: np.ndarray | None = None
    lidar_of_point: np.ndarray | None = None
    class_of_point: np.ndarray | None = None


def global_from_reference(
    global_from_ego: np.ndarray, ego_from_lidar: np.ndarray | None, reference: Reference
) -> np.ndarray:
    """(4, 4) pose of the frame of reference of points and boxes; `ego` needs no ego_from_lidar."""
    if reference == "ego":
        return global_from_ego
    assert ego_from_lidar is not None
    return np.asarray(global_from_ego @ ego_from_lidar)


def join_lidars(
    sweeps: Mapping[int, Sequence[Sweep]], timestamp: int, reference_from_global: np.ndarray, own: Box | None
) -> Cloud:
    """The points of all LiDARs in the reference frame, with dt (s) instead of the ring; classes are -1 where unknown.

    As LidarPointCloud.from_file_multisweep of the devkit: compensated for the motion of the vehicle, not for that of
    objects; one dt for a sweep. Within a sweep it is compensated where `Sweep.motion` is known.

    Args:
        sweeps: index of a LiDAR -> the keyframe's sweep, then its earlier ones, latest first; empty without data.
        timestamp: us, of the frame; dt is the time from the sweep, or the point, to it.
        own: the own vehicle, whose points are left out; None: those within 1 m of the sensor, as in the devkit.
    """
    found = [(lidar, number, sweep) for lidar, each in sweeps.items() for number, sweep in enumerate(each)]
    if not found:
        return Cloud()
    joined = any(lidar for lidar, _, _ in found)
    if joined:
        found.sort(key=lambda each: -each[2].timestamp)
    lidars, numbers, recorded = zip(*found, strict=True)
    parts, kept = zip(*(_in_reference(each, timestamp, reference_from_global, own) for each in recorded), strict=True)
    counts = [len(part) for part in parts]
    classes = None
    if any(each.classes is not None for each in recorded):
        classes = np.concatenate(
            [
                np.full(count, -1, np.int16) if each.classes is None else each.classes[mine]
                for each, mine, count in zip(recorded, kept, counts, strict=True)
            ]
        )
    of_sweeps, of_lidars = (np.repeat(np.array(each, np.uint8), counts) for each in (numbers, lidars))
    return Cloud(np.concatenate(parts), of_sweeps, of_lidars if joined else None, classes)


def is_measurement(points: np.ndarray, farthest: float) -> np.ndarray:
    """(N,) bool: points (N, >=4) with x y z within `farthest` m, and an intensity of at least 0; False for NaN.

    A file read with another number of columns has coordinates, half of them negative, where the intensity is.
    """
    return np.asarray((np.abs(points[:, :3].T) < farthest).all(axis=0) & (points[:, 3] >= 0))


def is_outside_roof(points: np.ndarray) -> np.ndarray:
    """(N,) bool: points (N, >=2) in the sensor's frame that are not returns from the vehicle's own roof."""
    # By columns, because numpy is slow along an axis of length two.
    return np.asarray((np.abs(points[:, 0]) >= ROOF) | (np.abs(points[:, 1]) >= ROOF))


def _in_reference(
    sweep: Sweep, timestamp: int, reference_from_global: np.ndarray, own: Box | None
) -> tuple[np.ndarray, np.ndarray]:
    """(M, 5) points in the frame of reference as in `join_lidars`, and the mask (N,) bool of the points kept."""
    if own is None:
        kept = is_outside_roof(sweep.points)
    else:
        mount = sweep.ego_from_lidar.astype(np.float32)
        kept = ~own.contains(sweep.points[:, :3] @ mount[:3, :3].T + mount[:3, 3])
    # np.compress, because boolean indexing is slow along an axis of length five.
    points = np.compress(kept, sweep.points, axis=0)
    if sweep.motion is not None:
        motion = sweep.motion._replace(point_times=sweep.motion.point_times[kept])
        points[:, :3] = compensate(points[:, :3], motion, sweep.ego_from_lidar, reference_from_global)
    else:
        transform = (reference_from_global @ sweep.global_from_ego @ sweep.ego_from_lidar).astype(np.float32)
        move(points, transform)
    times = sweep.timestamp if sweep.times is None else np.compress(kept, sweep.times)
    points[:, 4] = 1e-6 * (timestamp - times)
    return points, kept
