"""Speed of a replay compared with the drive, with all its files, and how much the report slows it down."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from rich.console import Console
from simulated_drives import DATA, drives

from deploy.replay import player
from deploy.replay.latency import STAGES
from deploy.replay.report import Report
from deploy.replay.run import replay
from deploy.replay.settings import Source
from deploy.runtime import CHECK_EVERY, Runtime
from perception.datasets.nuscenes.dataset import NuScenesTables

QUIET = Console(quiet=True)
JOBS = 2


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--bundle", type=Path, default=Path("runs/demo/bundle"))
    command.add_argument("--data", type=Path, default=DATA)
    command.add_argument("--scenes", type=int, default=10, help="at most this many")
    command.add_argument("--rounds", type=int, default=3)
    command.set_defaults(run=replay_speed)


def replay_speed(arguments: argparse.Namespace) -> dict[str, Any]:
    """Duration of the drives divided by that of their replay, from opening the bundle to the last file.

    Frames are read and files written in parallel with the network, so the stages add up to more than a frame takes.
    `writing` is the time to write a frame's results, tracks, statistics and report; `report` is part of it.
    `speed_up_of_2_processes` is that of `--jobs 2`, starting them included. `writing_slows` is how much longer a replay
    with the report takes than one without. `network_alone_factor` is what `realtime_factor` would be if only the
    network took time. `check_share` is the share of time that repeated golden frames take on the vehicle. All are
    medians of alternating rounds.
    """
    tables = drives(arguments.data)
    scenes = tables.scenes()[: arguments.scenes]
    driven = sum(_seconds(tables, scene) for scene in scenes)
    walls, without, several, cores, shares = [], [], [], [], []
    for _ in range(arguments.rounds):
        seconds: dict[str, float] = {"writing": 0.0, "report": 0.0}
        writing, report = _timed(player._write, seconds, "writing"), _timed(Report.add, seconds, "report")
        with patch.object(player, "_write", writing), patch.object(Report, "add", report):
            processor = time.process_time()
            wall, summary = _replayed(arguments, scenes)
            processor = time.process_time() - processor
        frames = summary["frames"]
        walls.append(wall)
        cores.append(1e3 * processor / frames)
        stages = {stage: summary["latency_ms"][stage]["mean"] for stage in STAGES}
        shares.append(stages | {name: 1e3 * each / frames for name, each in seconds.items()})
        with patch.object(Report, "add", lambda *_: None):
            without.append(_replayed(arguments, scenes)[0])
        several.append(_replayed(arguments, scenes, JOBS)[0])
    stage_ms = {name: statistics.median(each[name] for each in shares) for name in shares[0]}
    network = _network_seconds(arguments.bundle)
    return {
        "realtime_factor": driven / statistics.median(walls),
        f"speed_up_of_{JOBS}_processes": statistics.median(walls) / statistics.median(several),
        "stage_ms": stage_ms,
        "network_alone_factor": driven / frames / network,
        "check_share": 1e3 * network / (CHECK_EVERY * sum(stage_ms[stage] for stage in STAGES if stage != "read")),
        "frame_ms": 1e3 * statistics.median(walls) / frames,
        "processor_ms": statistics.median(cores),
        "writing_slows": statistics.median(walls) / statistics.median(without) - 1,
        "frames": frames,
        "driven_s": driven,
        "replay_s": walls,
        "without_report_s": without,
        "several_processes_s": several,
    }


def _network_seconds(bundle: Path) -> float:
    """A golden frame through the network, with nothing beside it."""
    runtime, seconds = Runtime(bundle), []
    for _ in range(15):
        start = time.perf_counter()
        runtime.check()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _replayed(
    arguments: argparse.Namespace, scenes: list[str], jobs: int | None = None
) -> tuple[float, dict[str, Any]]:
    """Replay the scenes, with `--jobs` if given; returns the seconds that it took, and the summary."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        out = Path(folder) / "out"
        source = Source(arguments.data, None, scenes)
        summary = replay(source, arguments.bundle, out, jobs=jobs, console=QUIET)
        return time.perf_counter() - start, summary


def _timed(function: Callable[..., Any], seconds: dict[str, float], name: str) -> Callable[..., Any]:
    """Wrap a function so that it adds its duration to `seconds[name]`."""

    def timed(*given: Any) -> Any:
        start = time.perf_counter()
        result = function(*given)
        seconds[name] += time.perf_counter() - start
        return result

    return timed


def _seconds(tables: NuScenesTables, scene: str) -> float:
    """The duration of a scene, with half a second per keyframe."""
    return 0.5 * len(tables.samples(selectors=[scene]))
