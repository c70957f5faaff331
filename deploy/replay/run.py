"""The command `perception replay`: replay recorded drives, print a summary, and judge the replay."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from deploy.replay.folder import error_if_unjudged, require_separate
from deploy.replay.gates import Gates
from deploy.replay.measures import measure_whole
from deploy.replay.player import Player, Timed, Watcher
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
) -> dict[str, Any]:
    """Replay recorded drives through a bundle, and judge the outcome if there are gates or a baseline.

    An unfinished replay of the same drives in `out` is resumed.

    Args:
        baseline: folder of another replay of the same scenes.
        gates: by default `default_gates`, if there is a baseline.

    Returns:
        The summary, with the verdict, if any, under `verdict`.

    Raises:
        InputError: there is no such drive, scene, bundle or engine, a file is damaged, the bundle is not trusted, a
            gate or the baseline cannot be used, no frame is selected, or `out` cannot be written or has an unfinished
            replay of something else.
    """
    console, settings = console or Console(), settings or Settings()
    require_separate(out, baseline)
    require_comparable(baseline, gates)
    require_viewers(settings.viewers)
    judged = gates is not None or baseline is not None
    with error_if_unjudged(out, judged):
        runtime = Runtime(bundle, settings.target, settings.trust, settings.evidence)
        taxonomy = runtime.bundle.manifest.taxonomy
        if gates is not None:
            gates.require_taxonomy(taxonomy)
        spec, signals = runtime.bundle.spec, runtime.sources.signals
        drives = open_drives(source.path, source.version, source.scenes, spec, source.topics, taxonomy, signals)
        player = Player(runtime, source, drives, out, settings, _Progress(console))
        summary = player.run()
        _print(player, summary, console)
        if gates is not None and player.tables is not None and settings.selection.every == 1:
            measure_whole(out, gates.scores, player.tables)
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

    def counted(self, frames: Iterator[Timed], expected: int) -> Iterator[Timed]:
        yield from track(frames, "Replaying", expected, console=self._console, transient=True)


def _print(player: Player, summary: dict[str, Any], console: Console) -> None:
    console.print(_latency_table(summary))
    for each in player.drives:
        console.print(each.counts.line())
    if player.not_finite:
        console.print(f"NaN or infinite outputs were left out in {player.not_finite} of the frames")
    if player.clock is not None:
        console.print(f"at most {player.clock.behind:.2f} s behind real time")
    console.print(f"report: {summary['report']}")


def _latency_table(summary: dict[str, Any]) -> Table:
    table = Table(title=f"{summary['frames']} frames, ms")
    for column in ("stage", "p50", "p95", "p99"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for stage, numbers in summary["latency_ms"].items():
        table.add_row(stage, *(f"{numbers[p]:.1f}" for p in ("p50", "p95", "p99")))
    return table
