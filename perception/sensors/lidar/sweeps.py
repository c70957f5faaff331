"""Accumulates LiDAR sweeps in one frame of reference. numpy only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from perception.grid import Reference

_ROOF = 1.0  # m, half the side of the square around the sensor with returns from the roof, as in the devkit


class Sweep(NamedTuple):
    """One revolution of the LiDAR, and its pose."""

    points: np.ndarray  # (N, 5) float32 x y z (m, sensor frame), intensity (0-255), ring
    timestamp: int  # us
    global_from_ego: np.ndarray  # (4, 4) at the sweep's time
    ego_from_lidar: np.ndarray  # (4, 4)


def global_from_reference(
    global_from_ego: np.ndarray, ego_from_lidar: np.ndarray | None, reference: Reference
) -> np.ndarray:
    """(4, 4) pose of the frame of reference of points and boxes; `ego` needs no ego_from_lidar."""
    if reference == "ego":
        return global_from_ego
    assert ego_from_lidar is not None
    return np.asarray(global_from_ego @ ego_from_lidar)


def accumulate_sweeps(sweeps: Iterable[Sweep], timestamp: int, reference_from_global: np.ndarray) -> np.ndarray:
    """(N, 5) float32 points of all sweeps in the reference frame, with dt (s) instead of the ring.

    As LidarPointCloud.from_file_multisweep of the devkit: compensated for the motion of the vehicle, not for that of
    objects.

    Args:
        sweeps: at least one.
        timestamp: us, of the keyframe; dt is the time from the sweep to it.
    """
    return np.concatenate([_in_reference(sweep, timestamp, reference_from_global) for sweep in sweeps])


def outside_roof(points: np.ndarray) -> np.ndarray:
    """(N,) bool: points (N, >=2) in the sensor's frame that are not returns from the vehicle's own roof."""
    # By columns, because numpy is slow along an axis of length two.
    return np.asarray((np.abs(points[:, 0]) >= _ROOF) | (np.abs(points[:, 1]) >= _ROOF))


def _in_reference(sweep: Sweep, timestamp: int, reference_from_global: np.ndarray) -> np.ndarray:
    # np.compress, because boolean indexing is slow along an axis of length five.
    points = np.compress(outside_roof(sweep.points), sweep.points, axis=0)
    transform = (reference_from_global @ sweep.global_from_ego @ sweep.ego_from_lidar).astype(np.float32)
    points[:, :3] = points[:, :3] @ transform[:3, :3].T
    for axis in range(3):
        points[:, axis] += transform[axis, 3]
    points[:, 4] = 1e-6 * (timestamp - sweep.timestamp)
    return points
