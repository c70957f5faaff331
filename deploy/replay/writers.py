"""The files that a replay writes frame by frame.

statistics.jsonl has what a verdict needs besides the results: time, position, and a part for each task.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np

from deploy.manifest import Manifest
from deploy.replay.results import STATISTICS
from perception.frame import Frame, Prediction
from perception.io.files import atomic_file, jsonable
from perception.scene.scene import SceneFrame
from perception.sensors import SENSORS
from perception.tasks.task import FrameWriter, Task

_ROWS = 16  # every 16th row of a picture is hashed; different pictures differ in nearly all rows

if TYPE_CHECKING:
    from deploy.replay.foxglove_results import FoxgloveWriter


class StatisticsWriter:
    """Writes statistics.jsonl, one line for each frame; `sensors` are the kinds that the network takes."""

    def __init__(self, file: BinaryIO, sensors: Sequence[str], tasks: Mapping[str, Task[Any]]) -> None:
        self._file, self._sensors = file, set(sensors)
        self._metrics = {name: task.metric(task.taxonomy, task.grid) for name, task in tasks.items()}

    def add(self, frame: Frame, prediction: Prediction) -> None:
        self._file.write(json.dumps(self.line(frame, prediction), allow_nan=False).encode() + b"\n")

    def line(self, frame: Frame, prediction: Prediction) -> dict[str, Any]:
        return {
            "token": frame.token,
            "scene": frame.scene,
            "timestamp": frame.timestamp,
            "conditions": frame.conditions.known(),
            "ego": frame.global_from_ego[:2, 3].tolist(),
            "sensors": sensors_hash(frame).hex(),
            "blind": not any(SENSORS[kind].sees(frame) for kind in self._sensors),
            "not_finite": dict(prediction.not_finite),
            "tasks": {name: self._of_task(name, frame, result) for name, result in prediction.results.items()},
        }

    def _of_task(self, name: str, frame: Frame, result: Any) -> Any:
        """What the metric of a task will count and compare."""
        metric = self._metrics[name]
        return jsonable({**metric.outputs(result), **metric.counts(frame, result)})


def sensors_hash(frame: Frame) -> bytes:
    """SHA-256 of tags, times, positions, signals, poses, calibration, every 16th row of the pictures, and the
    keyframe's LiDAR intensities. It does not depend on the network.

    Coordinates of points, earlier sweeps and `Frame.scans` are left out, because they depend on the network's inputs.
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


class Writers(NamedTuple):
    """All writers of a replay."""

    tasks: Mapping[str, FrameWriter]  # of the tasks' own files
    statistics: StatisticsWriter
    viewer: FoxgloveWriter | None

    def add(self, frame: Frame, seen: SceneFrame) -> None:
        """Write the next frame to all files."""
        for name, writer in self.tasks.items():
            writer.add(frame, seen.prediction.results[name], seen.states.get(name))
        if self.viewer is not None:
            self.viewer.add(frame, seen)
        self.statistics.add(frame, seen.prediction)


def open_writers(files: ExitStack, out: Path, manifest: Manifest, viewer: FoxgloveWriter | None = None) -> Writers:
    """Open the writers of one drive for the folder `out`; complete files appear when `files` is closed."""
    tasks, sensors = manifest.heads, tuple(manifest.sensors)
    own = {name: task.writer(out, sensors) for name, task in tasks.items()}
    return Writers(
        {name: files.enter_context(writer) for name, writer in own.items() if writer is not None},
        StatisticsWriter(files.enter_context(atomic_file(out / STATISTICS, "the statistics")), sensors, tasks),
        viewer,
    )
