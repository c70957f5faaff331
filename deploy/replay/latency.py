"""How long each stage of the replay took."""

from __future__ import annotations

import os
import platform
from array import array
from collections.abc import Mapping
from typing import Any

import numpy as np

STAGES = {
    "read": "sensor files from disk, pictures decoded, sweeps moved to the keyframe's time",
    "preprocess": "points grouped into pillars, pictures resized, projections",
    "engine": "the network, with its in-graph decoding and the copies to and from the engine",
    "postprocess": "output arrays to boxes and map",
    "health": "how each sensor is doing",
    "belief": "the conditions, smoothed over time",
    "track": "detections joined to objects",
    "map": "the map fused with what was seen before",
}


# Said beside the numbers, because it is not the only way to count.
COUNTED = (
    "each stage by the clock, where it is done, and a frame's total is the sum of its stages: meanwhile the next "
    "frames are read and the last ones written, on the same cores; what a frame waits between stages is not counted"
)


class Latency:
    """Seconds of every stage of every frame, see COUNTED. The engine has run the golden frame before, so it is warm.

    An hour at 2 Hz takes half a megabyte.
    """

    def __init__(self) -> None:
        self._seconds = {stage: array("d") for stage in STAGES}

    def add(self, seconds: Mapping[str, float]) -> None:
        for stage, each in self._seconds.items():
            each.append(seconds[stage])

    def __len__(self) -> int:
        """Frames that were added, all stages of them."""
        return min(map(len, self._seconds.values()))

    def summary(self) -> dict[str, Any]:
        """Milliseconds of each stage and of their sum: p50, p95, p99, mean and largest; and what was measured where."""
        milliseconds = {stage: np.array(each) * 1e3 for stage, each in self._seconds.items()}
        milliseconds["total"] = np.sum(list(milliseconds.values()), axis=0)
        return {
            "unit": "ms",
            "frames": len(self),
            "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {platform.system()}",
            "counted": COUNTED,
            "includes": STAGES,
            "stages": {stage: _quantiles(values) for stage, values in milliseconds.items()},
        }


def _quantiles(values: np.ndarray) -> dict[str, float]:
    p50, p95, p99 = np.percentile(values, [50, 95, 99])
    numbers = {"p50": p50, "p95": p95, "p99": p99, "mean": values.mean(), "max": values.max()}
    return {name: round(float(value), 3) for name, value in numbers.items()}
