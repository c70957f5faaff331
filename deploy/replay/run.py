"""The command `perception replay`: replay recorded drives, print a summary, and judge the replay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from deploy.recordings.counts import line_of
from deploy.replay.fleet import Fleet, find_drives
from deploy.replay.folder import error_if_unjudged, require_own_folder
from deploy.replay.gates import Gates
from deploy.replay.player import Watcher
from deploy.replay.provenance import ReplayProvenance
from deploy.replay.results import ReplayResults, measure_whole
from deploy.replay.settings import Settings, Source
from deploy.replay.verdict import judge, require_comparable
from deploy.runtime import Runtime
from perception.io.section import load_section
from perception.io.stores import with_addresses


def replay(
    source: Source,
    bundle: Path,
    out: Path,
    settings: Settings | None = None,
    baseline: Path | None = None,
    gates: Gates | Path | None = None,
    console: Console | None = None,
    jobs: int = 0,
    ray: str | None = None,
) -> dict[str, Any]:
    """Replay recorded drives through a bundle, and judge the outcome if there are gates or a baseline.

    An unfinished replay of the same drives in `out` goes on with those that are finished. The summary has the verdict,
    if any, under `verdict`.

    Args:
        gates: or their file; by default `default_gates`, if there is a baseline.
        jobs: processes that replay a drive each (`deploy.replay.fleet`); 0: none but this one.
        ray: address of a Ray cluster whose processes do this instead.
    """
    console, settings = console or Console(), settings or Settings()
    require_own_folder(out, baseline)
    judged = gates is not None or baseline is not None
    with error_if_unjudged(out, judged):
        if isinstance(gates, Path):
            gates = load_section(Gates, gates, "the gates")
        require_comparable(baseline, gates)
        runtime = Runtime(bundle, settings.target, settings.trust, settings.evidence)
        manifest = runtime.bundle.manifest
        if gates is not None:
            gates.require_taxonomy(manifest.taxonomy)
        drives = find_drives(source, runtime)
        with _Progress(console) as progress:
            fleet = Fleet(runtime, source, drives, out, settings, progress)
            progress.expect(fleet.expected)
            results = fleet.run(jobs, ray)
        summary = results.summary(manifest.heads)
        _print(results, summary, console)
        recorded = {name for drive in drives for name in drive.sensors}
        fleet.totals.require_data(runtime.bundle.spec.named_sensors, recorded)
        tables = next((drive.tables for drive in drives if drive.tables is not None), None)
        if gates is not None and tables is not None and settings.selection.every == 1:
            measure_whole(out, gates.scores, tables)
        if judged:
            verdict = judge(out, baseline, gates)
            console.print(verdict.table())
            summary["verdict"] = verdict.as_dict()
    return summary


class _Progress(Watcher):
    def __init__(self, console: Console) -> None:
        columns = (TextColumn("Replaying"), BarColumn(), MofNCompleteColumn(), _Speed(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=console, transient=True)

    def expect(self, frames: int) -> None:
        self._bar = self._progress.add_task("", total=frames)

    def message(self, text: str) -> None:
        self._progress.console.print(text)

    def advance(self, frames: int = 1) -> None:
        self._progress.advance(self._bar, frames)

    def __enter__(self) -> _Progress:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.0f} frames/s")


def _print(results: ReplayResults, summary: dict[str, Any], console: Console) -> None:
    console.print(_latency_table(summary))
    for counts in results.sources:
        console.print(line_of(counts))
    if absent := ReplayProvenance.load(results.folder).absent_faults:
        console.print(f"--fault {', '.join(absent)}: in no frame; choose a time and a sensor of the drives")
    if not_finite := summary["not_finite"]:
        console.print(f"NaN or infinite outputs were left out in {not_finite} of the frames")
    if "behind" in results.latency:
        console.print(f"at most {1e-3 * results.latency['behind']:.2f} s behind real time")
    console.print(with_addresses(f"report: {summary['report']}"))


def _latency_table(summary: dict[str, Any]) -> Table:
    table = Table(title=f"{summary['frames']} frames, ms")
    for column in ("stage", "p50", "p95", "p99"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for stage, numbers in summary["latency_ms"].items():
        table.add_row(stage, *(f"{numbers[p]:.1f}" for p in ("p50", "p95", "p99")))
    return table
