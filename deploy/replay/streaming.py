"""Streaming scores: detections compared with the annotations of the moment at which they have come out.

As Li, Wang and Ramanan, "Towards Streaming Perception", ECCV 2020: at each annotated moment the latest finished output
counts, whatever its age. One frame is computed at a time; when it is finished, the newest frame that has arrived is
next, and older ones are dropped. Detections stay where they were in the world: they are not moved by their speed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from deploy.manifest import Manifest
from deploy.replay.results import ReplayResults
from deploy.replay.settings import Settings
from perception.errors import InputError
from perception.frame import Boxes, Frame
from perception.io.files import make_folder, write_atomically
from perception.scene.scene import SceneFrame
from perception.tasks import TASKS
from perception.tasks.detection.devkit import RESULTS
from perception.tasks.detection.submission import SubmissionWriter
from perception.tasks.metric import Counts, Unmeasured

DETECTION = "detection"
FOLDER = "streaming"  # of what had come out at each keyframe
STREAMED, SCORES = f"{FOLDER}/{RESULTS}", "streaming.json"

Output = TypeVar("Output")


class Schedule(Generic[Output]):
    """Which output had come out when, if frames are computed one after the other. Times are us."""

    def __init__(self) -> None:
        self._running: tuple[int, Output] | None = None  # when it comes out
        self._waiting: tuple[int, Output] | None = None  # how long it takes, of the newest frame that has arrived
        self._latest: Output | None = None

    def add(self, time: int, duration: int, output: Output) -> None:
        """Add the frame that arrives next, and the output that computing it gives."""
        self._finish(time - 1)
        if self._running is not None and self._running[0] == time:
            self._latest, self._running = self._running[1], None  # the new frame is the newest of those that wait
        if self._running is None:
            self._running, self._waiting = (time + duration, output), None
        else:
            self._waiting = duration, output

    def latest(self, time: int) -> Output | None:
        """The latest output that has come out until a time, which is that of the latest frame; None: there is none."""
        if self._running is not None and self._running[0] <= time:
            return self._running[1]
        return self._latest

    def _finish(self, time: int) -> None:
        """Finish what comes out until a time."""
        while self._running is not None and self._running[0] <= time:
            end, self._latest = self._running
            self._running = None
            if self._waiting is not None:
                self._running, self._waiting = (end + self._waiting[0], self._waiting[1]), None


class StreamWriter:
    """Writes what had come out at each keyframe.

    Args:
        latency: s; None: what each frame took.
    """

    def __init__(self, writer: SubmissionWriter, latency: float | None) -> None:
        self._writer, self._latency = writer, latency
        self._schedule = Schedule[tuple[Frame, Boxes]]()

    @staticmethod
    def open(files: ExitStack, folder: Path, manifest: Manifest, settings: Settings) -> StreamWriter | None:
        """A writer for a drive's folder, whose file is whole when `files` is closed; None: not asked for."""
        if settings.streaming is None:
            return None
        path = make_folder(folder / FOLDER) / RESULTS
        writer = files.enter_context(SubmissionWriter.open(path, manifest.sensors, manifest.taxonomy))
        return StreamWriter(writer, None if settings.streaming == "measured" else settings.streaming)

    def add(self, frame: Frame, seen: SceneFrame) -> None:
        """Add the next frame, whether it is a keyframe or not."""
        seconds = sum(seen.seconds.values()) if self._latency is None else self._latency
        output = replace(frame, points=None, cameras={}), seen.prediction.results[DETECTION]
        self._schedule.add(frame.timestamp, round(1e6 * seconds), output)

    def write(self, keyframe: Frame) -> None:
        """Write what had come out at a keyframe, which was added last."""
        latest = self._schedule.latest(keyframe.timestamp)
        if latest is None:
            self._writer.add_entries(keyframe.token, [])
        else:
            frame, boxes = latest
            self._writer.add(replace(frame, token=keyframe.token), boxes)


def require_streaming(settings: Settings, manifest: Manifest, annotated: bool) -> None:
    """Raise InputError if streaming scores are asked for and cannot be measured.

    Args:
        annotated: whether all drives have annotations.
    """
    if settings.streaming is None:
        return
    if DETECTION not in manifest.heads:
        raise InputError(f"--streaming: scores detections, and the bundle has no task {DETECTION}; leave it out")
    if not annotated:
        raise InputError("--streaming: a recording has no annotations to compare with; replay a dataroot")


def measure_streaming(out: Path, settings: Settings) -> dict[str, Any]:
    """Score the finished replay in a folder, at once and streaming, and write both to SCORES.

    Returns:
        `latency` (s, or measured), and `at_once` and `streaming`, each as `DetectionMetric.report`; None without
        annotations.
    """
    finished = ReplayResults.load(out)
    metric = TASKS[DETECTION].metric(finished.taxonomy)
    found: dict[str, Any] = {"latency": settings.streaming}
    for name, folder in (("at_once", out), ("streaming", out / FOLDER)):
        counts = metric.recorded(finished.replayed._replace(folder=folder), finished.statistics(DETECTION))
        try:
            found[name] = metric.report(cast(Sequence[Counts], counts))  # a bundle's tasks run in every frame
        except Unmeasured:
            found[name] = None
    write_atomically(out / SCORES, json.dumps(found, indent=2, allow_nan=False).encode())
    return found


def describe_streaming(found: dict[str, Any]) -> str:
    """What `measure_streaming` found, in a line."""
    latency = found["latency"] if isinstance(found["latency"], str) else f"{1e3 * found['latency']:g} ms"
    if found["at_once"] is None:
        return f"streaming scores, latency {latency}: there are no annotations"
    scores = (f"{name} {found['at_once'][name]:.4f} at once, {found['streaming'][name]:.4f}" for name in ("mAP", "NDS"))
    return f"streaming scores, latency {latency}: {' when it comes out; '.join(scores)} when it comes out"
