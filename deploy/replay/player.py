"""Replay recorded drives through an exported bundle, to see what the vehicle would have perceived."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from deploy.replay.class_faults import hide, parse_faults
from deploy.replay.collected import Collected
from deploy.replay.conclude import Concluded, conclude
from deploy.replay.fault_detection import FaultDetections
from deploy.replay.faults import inject
from deploy.replay.folder import final_files, remove
from deploy.replay.isolation import frozen_objects, single_core
from deploy.replay.journal import JOURNAL, Journal
from deploy.replay.latency import THROUGHPUT, VEHICLE
from deploy.replay.machine import new_provenance
from deploy.replay.prefetch import BackgroundWriter, prefetch
from deploy.replay.provenance import DriveUsed
from deploy.replay.real_time import RealTime
from deploy.replay.record import MonitorState, Recorded, Written
from deploy.replay.report import Report, Share
from deploy.replay.settings import Settings, Source
from deploy.replay.sources import Drive
from deploy.replay.undecoded import UNREAD, Known, UndecodedFrame, nothing_known
from deploy.replay.writers import Writers, open_writers
from deploy.runtime import Runtime
from perception.files import make_folder
from perception.frame import Frame
from perception.scene.scene import SceneFrame

Each = TypeVar("Each")
Timed = tuple[Frame, float]  # a frame, and the seconds that reading it took


class Watcher:
    """Receives the progress of a replay; this one ignores it."""

    def message(self, text: str) -> None:
        """Receive a line of text."""

    def counted(self, frames: Iterator[Each], expected: int) -> Iterator[Each]:
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
        share: of these drives in a larger replay; None: they are the whole.
    """

    def __init__(
        self,
        runtime: Runtime,
        source: Source,
        drives: Sequence[Drive],
        out: Path,
        settings: Settings | None = None,
        watcher: Watcher | None = None,
        share: Share | None = None,
    ) -> None:
        self.runtime, self.source, self.drives, self.out = runtime, source, drives, out
        self.settings, self.watcher, self.share = settings or Settings(), watcher or Watcher(), share
        self.provenance = new_provenance(runtime, source, self.settings)
        # What the journal's frames depend on besides the drives: of the share, which pictures the report shows.
        place = {} if share is None else {"first": share.first, "total": share.total}
        self.computed = self.provenance.computed | place
        self.clock = RealTime() if self.settings.real_time or self.settings.latency else None
        manifest = runtime.bundle.manifest
        self.expected = sum(map(self.settings.selection.expected_of, drives))
        self.faults, self.hidden = parse_faults(self.settings.faults, manifest.rig.sensors, manifest.taxonomy)
        self.collected = Collected(
            Report(manifest, runtime.target, self.expected, share),
            FaultDetections(self.faults, self.hidden),
            VEHICLE if self.settings.latency else THROUGHPUT,
        )

    def run(self) -> Concluded:
        """Replay everything once, and write the files."""
        if self.settings.latency:
            self._measure_latencies()
        with self._journal() as journal:
            self._play(journal)
            behind = None if self.clock is None else self.clock.behind
            concluded = conclude(self.out, self.collected, self.provenance, behind)
            journal.finish()
        return concluded

    def run_part(self, write: Callable[[dict[str, Any]], None]) -> None:
        """Replay drives that are a part of a larger replay; `write` keeps what was collected instead of the last files.

        There may be no frame.
        """
        with self._journal() as journal:
            self._play(journal)
            write(self.collected.part())
            journal.finish()

    def _play(self, journal: Journal) -> None:
        """Perceive and write every frame."""
        remove(self.out, final_files())
        if journal.resumed and not self.settings.latency:
            self.watcher.message(f"{journal.path}: resuming the interrupted replay")
        if journal.discarded:
            self.watcher.message(f"{journal.path}: restarting, because it was begun with {journal.discarded}")
        known = [drive.tables for drive in self.drives if drive.tables is not None]
        with frozen_objects(), ExitStack() as files:
            manifest, viewers = self.runtime.bundle.manifest, self.settings.viewers
            writers = open_writers(files, self.out, manifest, known[0] if known else None, viewers)
            background = files.enter_context(BackgroundWriter())
            sizes = journal.sizes if self._restores_unread else nothing_known
            frames = files.enter_context(closing(prefetch(self._frames(sizes))))  # its thread reads the journal
            undecoded = False
            for given, reading in self.watcher.counted(frames, self.expected):
                frame = self.runtime.admit(given)
                recorded = journal.recall(frame)
                if recorded is not None:
                    undecoded = isinstance(frame, UndecodedFrame)
                    seen = self._restore(frame, recorded)
                    background.call(self._write, writers, frame, seen, recorded)
                    continue
                if undecoded and journal.monitor is not None:
                    self.runtime.scene.monitor.restore(*journal.monitor)
                    undecoded = False
                seen = self._perceive(frame, reading)
                state = self.runtime.scene.monitor.state()
                background.call(self._write_new, writers, journal, frame, seen, state)
        for drive in self.drives:
            self.collected.read(drive)
        self.collected.drives = [DriveUsed(name=name, frames=count) for name, count in journal.frames.items()]
        self.collected.recalled = 0 if self.settings.latency else journal.recalled

    def _measure_latencies(self) -> None:
        """Perceive every frame at its own time, without other threads; only the journal is written.

        An interrupted replay is not resumed, so that all latencies are of one run.
        """
        seconds = sum(drive.seconds for drive in self.drives)
        self.watcher.message(f"measuring latencies at the recorded pace: up to {seconds:.0f} s")
        with self._journal(resume=False) as journal, single_core():
            remove(self.out, final_files())
            for given, reading in self._frames():
                frame = self.runtime.admit(given)
                journal.add(frame, self._perceive(frame, reading))
        self.runtime.scene.restart()

    def _journal(self, resume: bool = True) -> Journal:
        about = self.provenance.about(self.source.path)
        return Journal(make_folder(self.out) / JOURNAL, about, self.computed, resume)

    @property
    def _restores_unread(self) -> bool:
        """Whether frames in the journal are restored without their sensor data: no viewer shows it, no fault
        changes it."""
        return not self.settings.viewers and not self.faults and not self.settings.latency

    def _frames(self, known: Known = nothing_known) -> Iterator[Timed]:
        """The selected frames of every drive, with the seconds that reading each took."""
        selection, faults = self.settings.selection, self.faults
        read = ((drive, known if faults else self._skipping(drive, known)) for drive in self.drives)
        drives = (frame for drive, wanted in read for frame in selection.before_end(drive.frames(wanted)))
        # Faults are injected before the selection, since they depend on earlier frames and on the start of the drive.
        given = inject(self.collected.faults.record_starts(drives), faults)
        return _with_reading_time(selection.select(given, needed=self.share is None))

    def _skipping(self, drive: Drive, known: Known) -> Known:
        """The same, and of a data set the sensors of frames that are not selected are not read."""
        tables, chosen = drive.tables, self.settings.selection.chooser()
        if tables is None:
            return known
        return lambda token: known(token) if chosen(tables.timestamp(token)) else UNREAD

    def _perceive(self, frame: Frame, reading: float) -> SceneFrame:
        """Run the network on a frame; `reading` (s) is added as a stage."""
        if self.clock is not None:
            self.clock.wait_for(frame)
        given = self._with_conditions(frame)
        prediction, weights = self.runtime.perceive(given)
        seen = self.runtime.remember(
            given, hide(prediction, self.hidden, self.collected.faults.seconds(frame)), weights
        )
        return replace(seen, seconds={"read": reading, **seen.seconds})

    def _restore(self, frame: Frame, recorded: Recorded) -> SceneFrame:
        """Restore what was perceived in a frame from its journal record."""
        given = self._with_conditions(frame)
        self.runtime.scene.observe(given, recorded.health if isinstance(frame, UndecodedFrame) else None)
        seen = self.runtime.scene.update(given, recorded.prediction, recorded.weights)
        return replace(seen, seconds=recorded.seconds)

    def _write(self, writers: Writers, frame: Frame, seen: SceneFrame, recorded: Recorded) -> None:
        """Write a frame that the journal has."""
        undecoded = isinstance(frame, UndecodedFrame)
        writers.add(frame, seen, recorded.statistics if undecoded else None)
        self.collected.add(frame, seen, recorded.shown if undecoded else None)

    def _write_new(
        self, writers: Writers, journal: Journal, frame: Frame, seen: SceneFrame, monitor: MonitorState
    ) -> None:
        """Write what was perceived in a frame; the journal last, which has all that was made of the frame."""
        statistics = writers.add(frame, seen)
        shown = self.collected.add(frame, seen)
        journal.add(frame, seen, Written(statistics, *shown, monitor))

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
