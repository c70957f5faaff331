"""Many drives replayed by several processes: speed-up of two over one, and what the driver adds to a drive."""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import patch

from rich.console import Console

from deploy.replay.fleet import Fleet
from deploy.replay.run import replay
from deploy.replay.settings import Source
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.simulate.simulate import simulate
from perception.workers import Pool

QUIET = Console(quiet=True)
VERSION, KEYFRAMES, CONDITIONS = "v1.0-sim", 6, ("clear-day-boston", "rain-night-singapore")
FILES = ("results.json", "tracks.json", "statistics.jsonl", "sources.json")


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--bundle", type=Path, default=Path("runs/demo/bundle"))
    command.add_argument("--data", type=Path, default=Path("runs/fleet"), help="simulated unless it is there")
    command.add_argument("--drives", type=int, default=40)
    command.add_argument("--rounds", type=int, default=3)
    command.set_defaults(run=fleet_speed)


def fleet_speed(arguments: argparse.Namespace) -> dict[str, Any]:
    """Replays of all drives by one process alone, and by one and two processes of a pool, in alternating rounds.

    `replay_s` are the seconds from opening the bundle to the last file. `speed_up` compares one and two processes from
    the first finished drive to the last one, without opening bundle and tables, `whole_speed_up` from begin to end.
    `possible` is what the machine gives: two pools of one process each at the same time, each with all drives, against
    one after the other. `driver_ms` is the driver's own processor time for a drive, joining included. Medians.
    """
    if not arguments.data.exists():
        simulate(arguments.data, arguments.drives, KEYFRAMES, 21, CONDITIONS)
    scenes = NuScenesTables(arguments.data, VERSION).scenes()[: arguments.drives]
    source = Source(arguments.data, VERSION, scenes)
    found: dict[int, list[dict[str, float]]] = {0: [], 1: [], 2: []}
    together, contents = [], []
    for _ in range(arguments.rounds):
        for jobs, rows in found.items():
            with tempfile.TemporaryDirectory() as folder:
                rows.append(_replayed(source, arguments.bundle, Path(folder), jobs))
                contents.append([(Path(folder) / name).read_bytes() for name in FILES])
        together.append(_together(source, arguments.bundle))
    median = {
        jobs: {name: statistics.median(row[name] for row in rows) for name in rows[0]} for jobs, rows in found.items()
    }
    return {
        "drives": len(scenes),
        "frames": KEYFRAMES * len(scenes),
        "same_bytes": all(each == contents[0] for each in contents),
        "speed_up": median[1]["drives_s"] / median[2]["drives_s"],
        "whole_speed_up": median[1]["replay_s"] / median[2]["replay_s"],
        "possible": 2 * median[1]["replay_s"] / statistics.median(together),
        "driver_ms": 1e3 * median[2]["driver_s"] / len(scenes),
        "replay_s": {name: median[jobs]["replay_s"] for name, jobs in (("alone", 0), ("one", 1), ("two", 2))},
        "rounds": arguments.rounds,
    }


def _replayed(source: Source, bundle: Path, out: Path, jobs: int) -> dict[str, float]:
    """Seconds of a replay, of its drives after the first one, and of the driver's processor."""
    finished, own = [0.0], [0.0]
    completed, run = Pool.completed, Fleet.run

    def noted(*given: Any, **options: Any) -> Iterator[Any]:
        for each in completed(*given, **options):
            finished.append(time.perf_counter())
            yield each

    def measured(*given: Any) -> Any:
        start = time.process_time()
        concluded = run(*given)
        own.append(time.process_time() - start)
        return concluded

    start = time.perf_counter()
    with patch.object(Pool, "completed", noted), patch.object(Fleet, "run", measured):
        replay(source, bundle, out, console=QUIET, jobs=jobs)
    end = time.perf_counter()
    return {
        "replay_s": end - start,
        "drives_s": finished[-1] - finished[min(1, len(finished) - 1)],
        "driver_s": own[-1],
    }


def _together(source: Source, bundle: Path) -> float:
    """Seconds of two replays at the same time, each by a process with a core of its own."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as threads:

        def replayed(core: int) -> None:
            os.sched_setaffinity(0, {core})  # of this thread and the processes that it starts
            replay(source, bundle, Path(folder) / str(core), console=QUIET, jobs=1)

        start = time.perf_counter()
        for each in [threads.submit(replayed, core) for core in sorted(os.sched_getaffinity(0))[:2]]:
            each.result()
        return time.perf_counter() - start
