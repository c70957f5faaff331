"""The command `perception replay`: replay recorded drives, print a summary, and judge the replay."""

from __future__ import annotations

from collections.abc import Iterator
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

from deploy.replay.conclude import Concluded
from deploy.replay.fleet import Fleet
from deploy.replay.folder import error_if_unjudged, require_own_folder
from deploy.replay.gates import Gates
from deploy.replay.measures import measure_whole
from deploy.replay.player import Each, Player, Watcher
from deploy.replay.settings import Settings, Source
from deploy.replay.sources import open_drives
from deploy.replay.verdict import judge, require_comparable
from deploy.replay.writers import require_viewers
from deploy.runtime import Runtime


def replay(
    source: Source,
    bundle: Path,
    out: Path,
    settings: Settings | None = None,
    baseline: Path | None = None,
    gates: Gates | None = None,
    console: Console | None = None,
    jobs: int = 0,
    ray: str | None = None,
) -> dict[str, Any]:
    """Replay recorded drives through a bundle, and judge the outcome if there are gates or a baseline.

    An unfinished replay of the same drives in `out` is resumed.

    Args:
        baseline: folder of another replay of the same scenes.
        gates: by default `default_gates`, if there is a baseline.
        jobs: processes that replay a drive each (`deploy.replay.fleet`); 0: none but this one.
        ray: address of a Ray cluster whose processes do this instead.

    Returns:
        The summary, with the verdict, if any, under `verdict`.

    Raises:
        InputError: there is no such drive, scene, bundle or engine, a file is damaged, the bundle is not trusted, a
            gate or the baseline cannot be used, no frame is selected, or `out` cannot be written or has an unfinished
            replay of something else.
    """
    console, settings = console or Console(), settings or Settings()
    require_own_folder(out, baseline)
    judged = gates is not None or baseline is not None
    with error_if_unjudged(out, judged):
        require_comparable(baseline, gates)
        require_viewers(settings.viewers)
        runtime = Runtime(bundle, settings.target, settings.trust, settings.evidence)
        manifest, spec = runtime.bundle.manifest, runtime.bundle.spec
        if gates is not None:
            gates.require_taxonomy(manifest.taxonomy)
        signals = runtime.sources.signals
        drives = open_drives(
            source.path, source.version, source.scenes, spec, source.topics, manifest.taxonomy, signals
        )
        if jobs or ray is not None:
            concluded = Fleet(runtime, source, drives, out, settings, _Progress(console)).run(jobs, ray)
        else:
            concluded = Player(runtime, source, drives, out, settings, _Progress(console)).run()
        summary = concluded.summary(manifest)
        _print(concluded, summary, console)
        tables = next((drive.tables for drive in drives if drive.tables is not None), None)
        if gates is not None and tables is not None and settings.selection.every == 1:
            measure_whole(out, gates.scores, tables)
        if judged:
            verdict = judge(out, baseline, gates)
            console.print(verdict.table())
            summary["verdict"] = verdict.as_dict()
    return summary


class _Progress(Watcher):
    """Shows the progress on a console."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def message(self, text: str) -> None:
        self._console.print(text)

    def counted(self, frames: Iterator[Each], expected: int) -> Iterator[Each]:
        columns = (TextColumn("Replaying"), BarColumn(), MofNCompleteColumn(), _Speed(), TimeRemainingColumn())
        with Progress(*columns, console=self._console, transient=True) as progress:
            yield from progress.track(frames, expected)


class _Speed(ProgressColumn):
    """Frames per second."""

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.0f} frames/s")


def _print(concluded: Concluded, summary: dict[str, Any], console: Console) -> None:
    console.print(_latency_table(summary))
    for _, line in concluded.collected.counts:
        console.print(line)
    if not_finite := concluded.collected.not_finite:
        console.print(f"NaN or infinite outputs were left out in {not_finite} of the frames")
    if concluded.behind is not None:
        console.print(f"at most {concluded.behind:.2f} s behind real time")
    console.print(f"report: {summary['report']}")


def _latency_table(summary: dict[str, Any]) -> Table:
    table = Table(title=f"{summary['frames']} frames, ms")
    for column in ("stage", "p50", "p95", "p99"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for stage, numbers in summary["latency_ms"].items():
        table.add_row(stage, *(f"{numbers[p]:.1f}" for p in ("p50", "p95", "p99")))
    return table
