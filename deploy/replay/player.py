"""Replays recorded drives through an exported bundle, to see what the vehicle would have seen."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import track
from rich.table import Table

from deploy.integrity import sha256
from deploy.manifest import MANIFEST
from deploy.replay.beside import Behind, ahead
from deploy.replay.faults import inject
from deploy.replay.finished import STATISTICS, TRACKING
from deploy.replay.gates import Gates
from deploy.replay.journal import JOURNAL, Journal, Recorded
from deploy.replay.latency import Latency
from deploy.replay.real_time import RealTime
from deploy.replay.report import Report
from deploy.replay.settings import Settings, Source
from deploy.replay.sources import Drive, open_drives
from deploy.replay.statistics import StatisticsWriter, Truth
from deploy.replay.tracking import score_tracking
from deploy.replay.verdict import Verdict, judge, require_comparable
from deploy.replay.viewers import FILES as VIEWER_FILES
from deploy.replay.viewers import ViewerWriter, open_viewer, require_viewers
from deploy.runtime import Runtime
from perception.atomic import write_atomically
from perception.errors import InputError
from perception.evaluation.submission import SubmissionWriter
from perception.evaluation.tracking import TrackWriter
from perception.frame import Frame
from perception.scene.scene import SceneFrame


class Player:
    """Runs drives through a runtime and writes to the folder `out`:

    results.json      every detection, as a nuScenes submission
    tracks.json       every object that is followed, as a nuScenes tracking submission
    statistics.jsonl  of every frame what a verdict needs besides
    sources.json      per drive: frames that were read, missing sensors, and what was wrong with a recording's messages
    latency.json      p50, p95 and p99 of every stage
    report.html       all of it to look at, in one file
    results.mcap/rrd  where they are asked for: all of it to look at in Foxglove or Rerun

    Until they are whole, replay.journal holds what was perceived so far. A replay of the same frames that was killed
    goes on from there, and the first three files are the same bytes as if it had not been killed.

    While the network sees a frame, the next ones are read and the last ones written (`deploy.replay.beside`).

    Args:
        about: what the frames depend on, as JSON holds it.
    """

    def __init__(
        self,
        runtime: Runtime,
        drives: Sequence[Drive],
        out: Path,
        console: Console,
        about: Mapping[str, Any],
        settings: Settings | None = None,
    ) -> None:
        self.runtime, self.drives, self.out, self.console = runtime, drives, out, console
        self.about = {**about, "bundle": sha256(runtime.bundle.path / MANIFEST), "target": runtime.target}
        self.settings = settings or Settings()
        self.clock = RealTime() if self.settings.real_time else None
        known = [drive.tables for drive in drives if drive.tables is not None]
        self.truth = Truth(known[0]) if known else None
        self.latency = Latency()
        self.expected = sum(self.settings.selection.expected(len(drive), drive.seconds) for drive in drives)
        self.report = Report(runtime.bundle.manifest, runtime.target, self.expected, self.settings.faults)

    def run(self) -> dict[str, Any]:
        """Replay everything once; returns the summary that the report begins with."""
        manifest = self.runtime.bundle.manifest
        map_grid = None if manifest.map_grid is None else manifest.map_grid.build()
        with Journal(self._file(JOURNAL), self.about) as journal:
            if journal.resumed:
                self.console.print(f"{journal.path}: going on with the replay that was interrupted")
            with (
                SubmissionWriter(self._file("results.json"), manifest.sensors) as results,
                TrackWriter(self._file("tracks.json"), manifest.sensors) as tracks,
                StatisticsWriter(self._file(STATISTICS), manifest.sensors, map_grid, self.truth) as statistics,
                ExitStack() as stack,
            ):
                # Tables and bundle stay to the end: the collector need not look through them while frames are seen.
                gc.freeze()
                stack.callback(gc.unfreeze)
                shown = [stack.enter_context(open_viewer(name, self.out, map_grid)) for name in self.settings.viewers]
                writers = Writers(journal, results, tracks, statistics, self.latency, self.report, shown)
                behind, told = stack.enter_context(Behind()), self.settings.conditions
                for frame, reading in self._frames():
                    recorded = journal.recall(frame)
                    given = frame if told is None else replace(frame, conditions=told)
                    seen = self._seen(given, reading) if recorded is None else self._recalled(given, recorded)
                    behind.call(writers.add, frame, seen, recorded is None)
            latency = self.latency.summary()
            write_atomically(self._file("latency.json"), json.dumps(latency, indent=2).encode())
            counts = [drive.counts.summary() for drive in self.drives]
            write_atomically(self._file("sources.json"), json.dumps(counts, indent=2).encode())
            self.write_report()
            journal.finish()
        return {
            "frames": latency["frames"],
            "resumed_at_frame": journal.recalled,
            "latency_ms": latency["stages"],
            "results": str(self._file("results.json")),
            "tracks": str(self._file("tracks.json")),
            "sources": str(self._file("sources.json")),
            "latency": str(self._file("latency.json")),
            "report": str(self._file("report.html")),
            "viewers": {name: str(self._file(VIEWER_FILES[name])) for name in self.settings.viewers},
        }

    def write_report(self, verdict: Verdict | None = None) -> None:
        """Write the report's page; once more when there is a verdict, with which it then begins."""
        page = self.report.html(self.latency.summary(), None if verdict is None else verdict.as_dict())
        write_atomically(self._file("report.html"), page.encode())

    def _frames(self) -> Iterator[tuple[Frame, float]]:
        """The selected frames of every drive, with the seconds that reading each took."""
        drives = (frame for drive in self.drives for frame in self.settings.selection.until_end(drive))
        # Faults come first: their windows count from the drive's first frame, and a frozen sensor shows an earlier one.
        watched = inject(self.report.told.watched(drives), self.settings.faults)
        frames = ahead(_clocked(self.settings.selection.of(watched)))
        return iter(track(frames, "Replaying", self.expected, console=self.console, transient=True))

    def _seen(self, frame: Frame, reading: float) -> SceneFrame:
        """The drive up to a frame, as the network sees it. Reading is a stage too."""
        if self.clock is not None:
            self.clock.wait_for(frame)
        seen = self.runtime.step(frame)
        return replace(seen, seconds={"read": reading, **seen.seconds})

    def _recalled(self, frame: Frame, recorded: Recorded) -> SceneFrame:
        """The drive up to a frame, as the journal has it."""
        self.runtime.scene.observe(frame)
        seen = self.runtime.scene.update(frame, recorded.prediction, recorded.weights)
        return replace(seen, seconds=recorded.seconds)

    def _file(self, name: str) -> Path:
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.out}: cannot make the folder ({error.strerror}); choose another --out") from None
        return self.out / name


def replay(
    source: Source,
    bundle: Path,
    out: Path,
    settings: Settings | None = None,
    baseline: Path | None = None,
    gates: Gates | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Replay recorded drives through a bundle.

    Where `out` holds an unfinished replay of the same, it goes on. Where there are gates or a baseline the outcome is
    judged.

    Args:
        baseline: the folder of another replay of the same scenes, to compare with.
        gates: what must be reached; without them and with a baseline the usual ones.

    Returns:
        The summary, with the verdict under `verdict` where there is one.

    Raises:
        InputError: no such drive, scene, bundle or engine, a damaged file, a bundle that the key did not sign, a gate
            or baseline that cannot be used, no frame selected, or `out` cannot be written or holds an unfinished
            replay of something else.
    """
    console, settings = console or Console(), settings or Settings()
    require_comparable(baseline, gates)
    require_viewers(settings.viewers)
    runtime = Runtime(bundle, settings.target, settings.key)
    drives = open_drives(source.path, source.version, source.scenes, runtime.bundle.spec, source.topics)
    about = {
        "drive": str(source.path.resolve()),
        "version": source.version,
        "scenes": list(source.scenes),
        "topics": None if source.topics is None else sha256(source.topics),
        "faults": [fault.text for fault in settings.faults],
        "conditions": None if settings.conditions is None else settings.conditions.known(),
        "selection": asdict(settings.selection),
    }
    player = Player(runtime, drives, out, console, about, settings)
    summary = player.run()
    console.print(_latency_table(summary))
    for each in drives:
        console.print(each.counts.line())
    if player.clock is not None:
        console.print(f"at most {player.clock.behind:.2f} s behind real time")
    console.print(f"report: {summary['report']}")
    (out / TRACKING).unlink(missing_ok=True)
    if gates is not None and gates.tracking and player.truth is not None and settings.selection.every == 1:
        score_tracking(out, player.truth.tables)
    if gates is not None or baseline is not None:
        verdict = judge(out, baseline, gates)
        player.write_report(verdict)
        console.print(verdict.table())
        summary["verdict"] = verdict.as_dict()
    return summary


class Writers(NamedTuple):
    """All that takes in what was perceived in a frame."""

    journal: Journal
    results: SubmissionWriter
    tracks: TrackWriter
    statistics: StatisticsWriter
    latency: Latency
    report: Report
    viewers: Sequence[ViewerWriter]

    def add(self, frame: Frame, seen: SceneFrame, new: bool) -> None:
        """The next frame; `new`: the journal does not have it yet."""
        if new:
            self.journal.add(frame, seen)
        self.results.add(frame, seen.prediction)
        self.tracks.add(frame.token, seen.tracks)
        self.statistics.add(frame, seen.prediction)
        self.report.add(frame, seen)
        for viewer in self.viewers:
            viewer.add(frame, seen)
        self.latency.add(seen.seconds)  # last: it counts the frames of which all is written


def _clocked(frames: Iterator[Frame]) -> Iterator[tuple[Frame, float]]:
    """The frames, with the seconds that each took to come."""
    start = time.perf_counter()
    for frame in frames:
        yield frame, time.perf_counter() - start
        start = time.perf_counter()


def _latency_table(summary: dict[str, Any]) -> Table:
    table = Table(title=f"{summary['frames']} frames, ms")
    for column in ("stage", "p50", "p95", "p99"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for stage, numbers in summary["latency_ms"].items():
        table.add_row(stage, *(f"{numbers[p]:.1f}" for p in ("p50", "p95", "p99")))
    return table
