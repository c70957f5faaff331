"""Per-frame statistics that a verdict needs besides the results: time, position, and a part for each task."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

from deploy.replay.fingerprint import sensors_hash
from perception.datasets.keyframes import Keyframes
from perception.frame import Frame, Prediction
from perception.strict_json import jsonable
from perception.tasks.task import Task


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
        self._file, self._sensors = file, set(sensors)
        self._metrics = {name: task.metric(task.taxonomy, task.grid, source) for name, task in tasks.items()}

    def add(self, frame: Frame, prediction: Prediction, known: dict[str, Any] | None = None) -> dict[str, Any]:
        """Write the line of a frame, which is returned; `known`: the same of an earlier run."""
        line = self.line(frame, prediction) if known is None else known
        self._file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
        return line

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
            "tasks": {name: self._of_task(name, frame, result) for name, result in prediction.results.items()},
        }

    def _of_task(self, name: str, frame: Frame, result: Any) -> Any:
        """What the metric of a task will count and compare."""
        metric = self._metrics[name]
        return jsonable({**metric.outputs(result), **metric.counts(frame, result)})
