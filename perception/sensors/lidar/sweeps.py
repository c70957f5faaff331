"""Accumulates LiDAR sweeps in one frame of reference. numpy only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from perception.grid import Reference
from perception.rig import Box
from perception.sensors.lidar.compensation import Motion, compensated

_ROOF = 1.0  # m, half the side of the square around the sensor with returns from the roof, as in the devkit


class Sweep(NamedTuple):
    """One revolution of the LiDAR, and its pose."""

    points: np.ndarray  # (N, 5) float32 x y z (m, sensor frame), intensity (0-255), ring
    timestamp: int  # us
    global_from_ego: np.ndarray  # (4, 4) at the sweep's time
    ego_from_lidar: np.ndarray  # (4, 4)
    motion: Motion | None = None  # of the vehicle during the sweep; None: all points are of the sweep's time
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


def accumulate_sweeps(
    sweeps: Iterable[Sweep], timestamp: int, reference_from_global: np.ndarray, own: Box | None = None
) -> np.ndarray:
    """(N, 5) float32 points of all sweeps in the reference frame, with dt (s) instead of the ring.

    As LidarPointCloud.from_file_multisweep of the devkit: compensated for the motion of the vehicle, not for that of
    objects; one dt for a sweep. Within a sweep it is compensated where `Sweep.motion` is known.

    Args:
        sweeps: at least one.
        timestamp: us, of the keyframe; dt is the time from the sweep, or the point, to it.
        own: the own vehicle, whose points are left out; None: those within 1 m of the sensor, as in the devkit.
    """
    return np.concatenate([_in_reference(sweep, timestamp, reference_from_global, own)[0] for sweep in sweeps])


def join_lidars(
    sweeps: Mapping[int, Sequence[Sweep]], timestamp: int, reference_from_global: np.ndarray, own: Box | None
) -> Cloud:
    """The points of all LiDARs, each at its own times. Those of sweeps without classes are of none of them, -1.

    Args:
        sweeps: index of a LiDAR -> the keyframe's sweep, then its earlier ones, latest first; empty without data.
        timestamp: us, of the frame.
        own: as for `accumulate_sweeps`.
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


def outside_roof(points: np.ndarray) -> np.ndarray:
    """(N,) bool: points (N, >=2) in the sensor's frame that are not returns from the vehicle's own roof."""
    # By columns, because numpy is slow along an axis of length two.
    return np.asarray((np.abs(points[:, 0]) >= _ROOF) | (np.abs(points[:, 1]) >= _ROOF))


def move(points: np.ndarray, transform: np.ndarray) -> None:
    """Transform the coordinates of points (N, >=3) in place, by a matrix (4, 4) of their type."""
    turned = points[:, :3] @ transform[:3, :3].T
    for axis in range(3):  # by columns, because numpy is slow along an axis of length three
        np.add(turned[:, axis], transform[axis, 3], out=points[:, axis])


def _in_reference(
    sweep: Sweep, timestamp: int, reference_from_global: np.ndarray, own: Box | None
) -> tuple[np.ndarray, np.ndarray]:
    """(M, 5) the points as of `accumulate_sweeps`, and (N,) bool which of the sweep's they are."""
    if own is None:
        kept = outside_roof(sweep.points)
    else:
        mount = sweep.ego_from_lidar.astype(np.float32)
        kept = ~own.contains(sweep.points[:, :3] @ mount[:3, :3].T + mount[:3, 3])
    # np.compress, because boolean indexing is slow along an axis of length five.
    points = np.compress(kept, sweep.points, axis=0)
    if sweep.motion is not None:
        motion = sweep.motion._replace(point_times=sweep.motion.point_times[kept])
        points[:, :3] = compensated(points[:, :3], motion, sweep.ego_from_lidar, reference_from_global)
    else:
        transform = (reference_from_global @ sweep.global_from_ego @ sweep.ego_from_lidar).astype(np.float32)
        move(points, transform)
    times = sweep.timestamp if sweep.times is None else np.compress(kept, sweep.times)
    points[:, 4] = 1e-6 * (timestamp - times)
    return points, kept
