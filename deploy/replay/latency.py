"""The latency of each stage of a replay."""

from __future__ import annotations

import os
import platform
from array import array
from collections.abc import Mapping
from typing import Any

import numpy as np

from perception.frame import Frame

STAGES = {
    "read": "sensor files from disk, pictures decoded, sweeps moved to the keyframe's time",
    "admit": "values of the frame checked, what cannot be used taken out",
    "check": "a golden frame repeated on the engine, in one of many frames",
    "preprocess": "points grouped into pillars, pictures resized, projections",
    "engine": "the network, with its in-graph decoding and the copies to and from the engine",
    "postprocess": "output arrays to boxes and map",
    "health": "health of the sensors",
    "belief": "conditions, smoothed over time",
    "memory": "detections assigned to tracks, cells fused into the map",
}


# How the numbers were measured, shown beside them.
COUNTED = (
    "each stage by the wall clock, on its own thread, and a frame's total is the sum of its stages: meanwhile the next "
    "frames are read and the last ones written on the same cores; time that a frame waits between stages is not counted"
)


class Latency:
    """Seconds of every stage of every frame, see COUNTED. The engine is warm, since it has run the golden frames."""

    def __init__(self) -> None:
        self._seconds = {stage: array("d") for stage in STAGES}
        self._periods = array("d")  # s, from each frame to the next one of its drive
        self._last = "", 0  # scene and us of the latest frame

    def add(self, frame: Frame, seconds: Mapping[str, float]) -> None:
        self.pass_by(frame)
        for stage, each in self._seconds.items():
            each.append(seconds[stage])

    def pass_by(self, frame: Frame) -> None:
        """Add the time of a frame that is not counted."""
        scene, before = self._last
        if scene == frame.scene and len(self):
            self._periods.append(1e-6 * (frame.timestamp - before))
        self._last = frame.scene, frame.timestamp

    def part(self) -> dict[str, Any]:
        """The values, for `join`."""
        return {"seconds": {stage: list(each) for stage, each in self._seconds.items()}, "periods": list(self._periods)}

    def join(self, part: Mapping[str, Any]) -> None:
        for stage, each in self._seconds.items():
            each.extend(part["seconds"][stage])
        self._periods.extend(part["periods"])

    def __len__(self) -> int:
        return min(map(len, self._seconds.values()))

    def summary(self) -> dict[str, Any]:
        """p50, p95, p99, mean and maximum of each stage and of the total in ms, and the machine.

        A frame misses its deadline if its total is longer than the median time between frames. There is no deadline if
        no drive has two frames.
        """
        milliseconds = {stage: np.array(each) * 1e3 for stage, each in self._seconds.items()}
        milliseconds["total"] = np.sum(list(milliseconds.values()), axis=0)
        period = 1e3 * float(np.median(self._periods)) if self._periods else None
        return {
            "unit": "ms",
            "frames": len(self),
            "period": None if period is None else round(period, 3),
            "deadline_misses": None if period is None else int((milliseconds["total"] > period).sum()),
            "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {platform.system()}",
            "counted": COUNTED,
            "includes": STAGES,
            "stages": {stage: _quantiles(values) for stage, values in milliseconds.items()},
        }


def _quantiles(values: np.ndarray) -> dict[str, float]:
    p50, p95, p99 = np.percentile(values, [50, 95, 99])
    numbers = {"p50": p50, "p95": p95, "p99": p99, "mean": values.mean(), "max": values.max()}
    return {name: round(float(value), 3) for name, value in numbers.items()}
