"""Per-frame statistics that a verdict needs besides the results: time, position, and a part for each task."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

from perception.datasets.keyframes import Keyframes
from perception.frame import Frame, Prediction
from perception.tasks.task import Task

_ROWS = 16  # every 16th row of a picture is hashed; different pictures differ in nearly all rows


class StatisticsWriter:
    """Writes statistics.jsonl, one line for each frame.

    Args:
        sensors: those that the network takes, of "camera" and "lidar".
        tasks: the network's tasks by name.
        source: of the annotations; None if the drive has none.
    """

    def __init__(
        self, file: BinaryIO, sensors: Sequence[str], tasks: Mapping[str, Task[Any]], source: Keyframes | None
    ) -> None:
        self._file, self._sensors, self._tasks, self._source = file, set(sensors), tasks, source

    def add(self, frame: Frame, prediction: Prediction) -> None:
        """Write the line of a frame."""
        self._file.write(json.dumps(self.line(frame, prediction), allow_nan=False).encode() + b"\n")

    def line(self, frame: Frame, prediction: Prediction) -> dict[str, Any]:
        cameras = bool(frame.cameras) and "camera" in self._sensors
        return {
            "token": frame.token,
            "scene": frame.scene,
            "timestamp": frame.timestamp,
            "conditions": frame.conditions.known(),
            "ego": frame.global_from_ego[:2, 3].tolist(),
            "sensors": sensors_hash(frame).hex(),
            "blind": not cameras and not (frame.points is not None and "lidar" in self._sensors),
            "not_finite": dict(prediction.not_finite),
            "tasks": {
                name: self._tasks[name].statistics(frame, result, self._source)
                for name, result in prediction.results.items()
            },
        }


def sensors_hash(frame: Frame) -> bytes:
    """SHA-256 of tags, times, positions, signals, poses, calibration, every 16th row of the pictures, and the
    keyframe's LiDAR intensities. It does not depend on the network.

    Coordinates of points and earlier sweeps are left out, because they depend on the network's inputs.
    """
    known = (frame.token, frame.scene, frame.timestamp, frame.location, frame.position, frame.conditions)
    arrays = [frame.global_from_ego]
    arrays += [] if frame.points is None else [frame.keyframe_points[:, 3]]
    for camera in frame.cameras.values():
        arrays += [camera.intrinsics, camera.ego_from_camera, camera.global_from_ego, camera.image[::_ROWS]]
    times = [(name, camera.timestamp) for name, camera in frame.cameras.items()]
    signals = (dict(frame.signals),) if frame.signals else ()
    digest = hashlib.sha256(repr((known, frame.points is None, times, *signals)).encode())
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.digest()
