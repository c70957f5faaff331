"""LiDAR sweeps of several moments, gathered in one frame of reference. numpy only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from perception.grid import Reference

_CLOSE = 1.0  # m; returns from the vehicle's own roof, which the devkit drops as well


class Sweep(NamedTuple):
    """One turn of the LiDAR, and where it was."""

    points: np.ndarray  # (N, 5) float32 x y z (m, sensor frame), intensity (0-255), ring
    timestamp: int  # us
    global_from_ego: np.ndarray  # (4, 4) at the sweep's own time
    ego_from_lidar: np.ndarray  # (4, 4)


def global_from_reference(
    global_from_ego: np.ndarray, ego_from_lidar: np.ndarray | None, reference: Reference
) -> np.ndarray:
    """(4, 4) of the frame of reference of points and boxes; `ego` needs no mounting of the LiDAR."""
    if reference == "ego":
        return global_from_ego
    assert ego_from_lidar is not None
    return np.asarray(global_from_ego @ ego_from_lidar)


def accumulate_sweeps(sweeps: Iterable[Sweep], timestamp: int, reference_from_global: np.ndarray) -> np.ndarray:
    """(N, 5) float32 of all sweeps, in the order given, in the reference frame; dt (s) takes the ring's place.

    As LidarPointCloud.from_file_multisweep of the devkit. Every sweep is moved by the vehicle's motion since, not by
    that of the objects.

    Args:
        sweeps: at least one.
        timestamp: us, of the keyframe; dt is what has passed since the sweep.
    """
    return np.concatenate([_placed(sweep, timestamp, reference_from_global) for sweep in sweeps])


def outside_roof(points: np.ndarray) -> np.ndarray:
    """(N,) bool: which of the points (N, >=2) in the sensor's frame are no returns from the vehicle's own roof."""
    # Column by column: numpy is slow along an axis of two numbers.
    return np.asarray((np.abs(points[:, 0]) >= _CLOSE) | (np.abs(points[:, 1]) >= _CLOSE))


def _placed(sweep: Sweep, timestamp: int, reference_from_global: np.ndarray) -> np.ndarray:
    # Rows by np.compress: numpy is slow along an axis of five numbers.
    placed = np.compress(outside_roof(sweep.points), sweep.points, axis=0)
    move = (reference_from_global @ sweep.global_from_ego @ sweep.ego_from_lidar).astype(np.float32)
    placed[:, :3] = placed[:, :3] @ move[:3, :3].T
    for axis in range(3):
        placed[:, axis] += move[axis, 3]
    placed[:, 4] = 1e-6 * (timestamp - sweep.timestamp)
    return placed
