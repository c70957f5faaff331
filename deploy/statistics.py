"""Measures what the sensors of recorded drives deliver, from frames that are spread over them. No torch here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from deploy.recordings import Drive, open_drives
from deploy.recordings.choice import FrameChoice
from perception.frame import Frame
from perception.scene.health.statistics import Collector, Statistics
from perception.sensors.inputs import InputSpec
from perception.taxonomy import Taxonomy

RUNS, LENGTH = 12, 4  # runs of frames over all drives, and frames of a run


class Runs(FrameChoice):
    """Chooses so many runs of LENGTH frames one after the other, evenly spread over a drive of about so many frames."""

    def __init__(self, frames: int, runs: int) -> None:
        super().__init__()
        self.index = -1  # of the latest frame
        self._stride = max(LENGTH, frames // runs)

    def __call__(self, scene: str, timestamp: int, between: bool = False) -> bool:
        self.index += 1
        return super().__call__(scene, timestamp, between) and self.index % self._stride < LENGTH


def open_to_measure(
    path: Path, version: str | None, scenes: Sequence[str], spec: InputSpec, topics: Path | None, taxonomy: Taxonomy
) -> Sequence[Drive]:
    """The drives at a path as `open_drives`, with frames for `Collector`."""
    reference = "lidar" if spec.lidar is not None else spec.grid.reference
    own = replace(spec, grid=replace(spec.grid, reference=reference), truth=())
    return open_drives(path, version, scenes, own, topics, taxonomy)


def spread_frames(drives: Sequence[Drive]) -> Iterator[tuple[Frame, Frame | None]]:
    """Frames of RUNS runs over the drives, each with the frame before it; None for the first of a run."""
    chosen = np.unique(np.linspace(0, len(drives) - 1, min(RUNS, len(drives))).astype(int))
    for drive in (drives[i] for i in chosen):
        choice = Runs(len(drive), -(-RUNS // len(chosen)))
        before, last = None, -1
        for frame in islice(drive.frames(choice), RUNS * LENGTH):
            yield frame, before if choice.index == last + 1 else None
            before, last = frame, choice.index


def measure(drives: Sequence[Drive], spec: InputSpec) -> Statistics:
    """The statistics of drives of `open_to_measure`."""
    collector = Collector(spec.named_sensors, spec.grid)
    for frame, before in spread_frames(drives):
        collector.add(frame, before)
    return collector.statistics()
