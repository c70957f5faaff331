"""Replay recorded drives through an exported bundle, to see what the vehicle would have perceived."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from deploy.replay.class_faults import HIDDEN, HiddenClass, hide
from deploy.replay.fault_detection import FaultDetections
from deploy.replay.faults import Fault, inject
from deploy.replay.folder import REPORT, SOURCES, VIEWERS, final_files, remove
from deploy.replay.isolation import frozen_objects, single_core
from deploy.replay.journal import JOURNAL, Journal, Recorded
from deploy.replay.latency import THROUGHPUT, VEHICLE, Latency
from deploy.replay.machine import new_provenance
from deploy.replay.prefetch import BackgroundWriter, prefetch
from deploy.replay.provenance import PROVENANCE, DriveUsed
from deploy.replay.real_time import RealTime
from deploy.replay.report import Report
from deploy.replay.results import LATENCY
from deploy.replay.settings import Settings, Source
from deploy.replay.sources import Drive
from deploy.replay.writers import Writers, open_writers
from deploy.runtime import Runtime
from perception.atomic import made, write_atomically
from perception.frame import Frame
from perception.scene.scene import SceneFrame

Timed = tuple[Frame, float]  # a frame, and the seconds that reading it took


class Watcher:
    """Receives the progress of a replay; this one ignores it."""

    def message(self, text: str) -> None:
        """Receive a line of text."""

    def counted(self, frames: Iterator[Timed], expected: int) -> Iterator[Timed]:
        """Yield the same frames; `expected` is about their number."""
        return frames


class Player:
    """Runs drives through a runtime and writes to the folder `out`:

    TASK'S FILES      such as results.json and tracks.json of detection (`Task.files`)
    statistics.jsonl  what a verdict also needs of every frame
    sources.json      per drive: number of frames, missing sensors, and problems of a recording's messages
    latency.json      p50, p95 and p99 of every stage
    report.html       the replay as a single HTML page
    results.mcap/rrd  the replay for Foxglove or Rerun, if requested
    replay.json       drives, bundle, software and machine (`deploy.replay.provenance`)

    The files of an earlier replay are removed first. Until the new ones are complete, replay.journal has what was
    perceived so far. A killed replay of the same frames resumes from there, and writes the same bytes to
    statistics.jsonl and the tasks' files as without the kill. With other software or on another machine it restarts.

    Two threads read the next frames and write the last ones while the network runs (`deploy.replay.prefetch`). To
    measure latencies, the player first runs the drive without them, into the journal (`_measure_latencies`).

    Args:
        source: where the drives come from.
        watcher: receives the progress; the player prints nothing.
    """

    def __init__(
        self,
        runtime: Runtime,
        source: Source,
        drives: Sequence[Drive],
        out: Path,
        settings: Settings | None = None,
        watcher: Watcher | None = None,
    ) -> None:
        self.runtime, self.source, self.drives, self.out = runtime, source, drives, out
        self.settings, self.watcher = settings or Settings(), watcher or Watcher()
        self.provenance = new_provenance(runtime, source, self.settings)
        self.clock = RealTime() if self.settings.real_time or self.settings.latency else None
        known = [drive.tables for drive in drives if drive.tables is not None]
        self.tables = known[0] if known else None  # with the annotations
        self.not_finite = 0  # frames with a NaN or infinity in an output
        self.latency = Latency(VEHICLE if self.settings.latency else THROUGHPUT)
        self.expected = sum(self.settings.selection.expected(len(drive), drive.seconds) for drive in drives)
        self.report = Report(runtime.bundle.manifest, runtime.target, self.expected)
        sensors = runtime.bundle.manifest.rig.sensors
        texts, taxonomy = self.settings.faults, runtime.bundle.manifest.taxonomy
        self.faults = [Fault.parse(text, sensors) for text in texts if not text.startswith(HIDDEN)]
        self.hidden = [HiddenClass.parse(text, taxonomy) for text in texts if text.startswith(HIDDEN)]
        self.fault_detections = FaultDetections(self.faults, self.hidden)

    def run(self) -> dict[str, Any]:
        """Replay everything once; returns the summary."""
        if self.settings.latency:
            self._measure_latencies()
        with self._journal() as journal, frozen_objects():
            remove(self.out, final_files())
            if journal.resumed and not self.settings.latency:
                self.watcher.message(f"{journal.path}: resuming the interrupted replay")
            if journal.discarded:
                self.watcher.message(f"{journal.path}: restarting, because it was begun with {journal.discarded}")
            with ExitStack() as files:
                manifest, viewers = self.runtime.bundle.manifest, self.settings.viewers
                writers = open_writers(files, self.out, manifest, self.tables, viewers)
                background = files.enter_context(BackgroundWriter())
                frames = prefetch(self._frames())
                for frame, reading in self.watcher.counted(frames, self.expected):
                    recorded = journal.recall(frame)
                    seen = self._perceive(frame, reading) if recorded is None else self._restore(frame, recorded)
                    background.call(self._write, writers, journal if recorded is None else None, frame, seen)
            self._conclude(journal)
            journal.finish()
        return self._summary()

    def _measure_latencies(self) -> None:
        """Perceive every frame at its own time, without other threads; only the journal is written.

        An interrupted replay is not resumed, so that all latencies are of one run.
        """
        seconds = sum(drive.seconds for drive in self.drives)
        self.watcher.message(f"measuring latencies at the recorded pace: up to {seconds:.0f} s")
        with self._journal(resume=False) as journal, single_core():
            remove(self.out, final_files())
            for frame, reading in self._frames():
                journal.add(frame, self._perceive(frame, reading))
        self.runtime.scene.restart()

    def _journal(self, resume: bool = True) -> Journal:
        known = self.provenance.model_dump(mode="json")
        names = ("version", "scenes", "topics_sha256", "faults", "conditions", "evidence", "selection", "latency")
        about = {"drive": str(self.source.path.resolve()), **{name: known[name] for name in names}}
        about |= {"bundle": self.provenance.bundle.manifest_sha256, "target": self.runtime.target}
        computed = {**known["software"], **known["engine"], **known["machine"]}
        return Journal(made(self.out) / JOURNAL, about, computed, resume)

    def _conclude(self, journal: Journal) -> None:
        """Write the files that need the whole replay, replay.json last."""
        late = {} if self.clock is None else {"behind": round(1e3 * self.clock.behind, 3)}
        write_atomically(self.out / LATENCY, json.dumps(self.latency.summary() | late, indent=2).encode())
        counts = [drive.counts.summary() for drive in self.drives]
        write_atomically(self.out / SOURCES, json.dumps(counts, indent=2).encode())
        self.provenance = self.provenance.model_copy(
            update={
                "drives": tuple(
                    DriveUsed(name=name, frames=each.frames, sensors_sha256=each.hexdigest())
                    for name, each in journal.fingerprints.items()
                ),
                "frames": len(self.latency),
                "resumed_at_frame": 0 if self.settings.latency else journal.recalled,
                "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            }
        )
        self.write_report()
        self.provenance.write(self.out)

    def _summary(self) -> dict[str, Any]:
        latency = self.latency.summary()
        names = {
            what: file for task in self.runtime.bundle.manifest.heads.values() for what, file in task.files.items()
        }
        names |= {"sources": SOURCES, "latency": LATENCY, "report": REPORT, "provenance": PROVENANCE}
        return {
            "frames": latency["frames"],
            "resumed_at_frame": self.provenance.resumed_at_frame,
            "not_finite": self.not_finite,
            "latency_ms": latency["stages"],
            **{name: str(self.out / file) for name, file in names.items()},
            "viewers": {name: str(self.out / VIEWERS[name]) for name in self.settings.viewers},
        }

    def write_report(self) -> None:
        """Write the report's page; `judge` adds its verdict."""
        page = self.report.html(self.latency.summary(), self.provenance.brief(), self.fault_detections.listed())
        write_atomically(self.out / REPORT, page.encode())

    def _frames(self) -> Iterator[Timed]:
        """The selected frames of every drive, with the seconds that reading each took."""
        selection, faults = self.settings.selection, self.faults
        drives = (frame for drive in self.drives for frame in selection.before_end(drive))
        # Faults are injected before the selection, since they depend on earlier frames and on the start of the drive.
        return _with_reading_time(selection.select(inject(self.fault_detections.record_starts(drives), faults)))

    def _perceive(self, frame: Frame, reading: float) -> SceneFrame:
        """Run the network on a frame; `reading` (s) is added as a stage."""
        if self.clock is not None:
            self.clock.wait_for(frame)
        given = self._with_conditions(frame)
        prediction, weights = self.runtime.perceive(given)
        seen = self.runtime.remember(
            given, hide(prediction, self.hidden, self.fault_detections.seconds(frame)), weights
        )
        return replace(seen, seconds={"read": reading, **seen.seconds})

    def _restore(self, frame: Frame, recorded: Recorded) -> SceneFrame:
        """Restore what was perceived in a frame from its journal record."""
        given = self._with_conditions(frame)
        self.runtime.scene.observe(given)
        seen = self.runtime.scene.update(given, recorded.prediction, recorded.weights)
        return replace(seen, seconds=recorded.seconds)

    def _write(self, writers: Writers, journal: Journal | None, frame: Frame, seen: SceneFrame) -> None:
        """Write what was perceived in a frame; `journal` is None if it has the frame already."""
        if journal is not None:
            journal.add(frame, seen)
        writers.add(frame, seen)
        self.not_finite += bool(seen.prediction.not_finite)
        self.report.add(frame, seen)
        self.fault_detections.add(frame, seen.health, seen.doubts)
        self.latency.add(frame, seen.seconds)  # last, since it counts the completely written frames

    def _with_conditions(self, frame: Frame) -> Frame:
        """The frame, with the conditions from the settings, if any, instead of the drive's tags."""
        given = self.settings.conditions
        return frame if given is None else replace(frame, conditions=given)


def _with_reading_time(frames: Iterator[Frame]) -> Iterator[Timed]:
    """Yield the frames with the seconds that reading each took."""
    start = time.perf_counter()
    for frame in frames:
        yield frame, time.perf_counter() - start
        start = time.perf_counter()
