"""Replays: their speed compared with the drive, and by several processes."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from benchmark import DRIVES, QUIET, Bundle, Rounds, drives, measure_times, medians

from deploy.replay.latency import STAGES
from deploy.replay.run import replay as run_replay
from deploy.replay.settings import Source
from deploy.runtime import CHECK_EVERY, Runtime
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.simulate.simulate import simulate

JOBS = 2
VERSION, KEYFRAMES, CONDITIONS = "v1.0-sim", 6, ("clear-day-boston", "rain-night-singapore")  # of a fleet
FILES = ("results.json", "tracks.json", "statistics.jsonl", "sources.json")


def replay(
    bundle: Bundle = Path("runs/demo/bundle"),
    data: Path = DRIVES,
    scenes: Annotated[int, typer.Option(help="At most so many.")] = 10,
    rounds: Rounds = 3,
) -> dict[str, Any]:
    """Duration of the drives divided by that of their replay, from opening the bundle to the last file.

    Frames are read and files written in parallel with the network, so the stages add up to more than a frame takes.
    `speed_up_of_2_processes` is that of `--jobs 2`, starting them included. `network_alone_factor` is what
    `realtime_factor` would be if only the network took time. `check_share` is the share of time that repeated golden
    frames take on the vehicle. All are medians of alternating rounds.
    """
    tables = drives(data)
    names = tables.scenes()[:scenes]
    source = Source(data, None, names)
    driven = 0.5 * len(tables.samples(selectors=names))  # s
    stages: list[dict[str, float]] = []

    def alone(_: object) -> None:
        summary = _replay(source, bundle)
        stages.append({stage: summary["latency_ms"][stage]["mean"] for stage in STAGES})

    variants = {"alone": alone, "several": lambda _: _replay(source, bundle, JOBS)}
    seconds = measure_times(variants, rounds, [time.perf_counter, time.process_time], discarded=0)
    wall, frames = medians(seconds), len(tables.samples(selectors=names))
    stage_ms = {stage: median(each[stage] for each in stages) for stage in STAGES}
    runtime = Runtime(bundle)
    network = medians(measure_times({"check": lambda _: runtime.check()}, 15))["check"]
    return {
        "realtime_factor": driven / wall["alone"],
        f"speed_up_of_{JOBS}_processes": wall["alone"] / wall["several"],
        "stage_ms": stage_ms,
        "network_alone_factor": driven / frames / network,
        "check_share": 1e3 * network / (CHECK_EVERY * sum(stage_ms[stage] for stage in STAGES if stage != "read")),
        "frame_ms": 1e3 * wall["alone"] / frames,
        "processor_ms": 1e3 * medians(seconds, clock=1)["alone"] / frames,
        "frames": frames,
        "driven_s": driven,
        "replay_s": seconds["alone"][0].tolist(),
        "several_processes_s": seconds["several"][0].tolist(),
    }


def _replay(source: Source, bundle: Path, jobs: int = 0) -> dict[str, Any]:
    """The summary of a replay, whose files are gone."""
    with tempfile.TemporaryDirectory() as folder:
        return run_replay(source, bundle, Path(folder) / "out", jobs=jobs, console=QUIET)


def fleet(
    bundle: Bundle = Path("runs/demo/bundle"),
    data: Annotated[Path, typer.Option(help="Simulated unless it is there.")] = Path("runs/fleet"),
    count: Annotated[int, typer.Option("--drives")] = 40,
    rounds: Rounds = 3,
) -> dict[str, Any]:
    """Replays of drives by one process alone, and by one and two processes of a pool, in alternating rounds.

    `replay_s` are the seconds from opening the bundle to the last file. `speedup` compares one and two processes over
    the second half of the drives, which leaves out what a replay does once: all drives less the first half.
    `whole_speed_up` compares all. `possible` is what the machine gives: two pools of one process each at the same time,
    each with all drives, against one after the other. `driver_ms_per_scene` is the driver's own processor time for a
    drive of the second half. Medians. `identical`: all replays of the same drives wrote the same bytes.
    """
    if not data.exists():
        simulate(data, count, KEYFRAMES, 21, CONDITIONS)
    scenes = NuScenesTables(data, VERSION).scenes()[:count]
    sources = {"all": Source(data, VERSION, scenes), "half": Source(data, VERSION, scenes[: len(scenes) // 2])}
    written: dict[str, list[list[bytes]]] = {part: [] for part in sources}

    def replayed(part: str, jobs: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            run_replay(sources[part], bundle, Path(folder), console=QUIET, jobs=jobs)
            written[part].append([(Path(folder) / name).read_bytes() for name in FILES])

    runs = ((0, "all"), (1, "half"), (1, "all"), (2, "half"), (2, "all"))
    variants = {f"{jobs} {part}": _of(replayed, part, jobs) for jobs, part in runs}
    variants["together"] = lambda _: _together(sources["all"], bundle)
    seconds = measure_times(variants, rounds, [time.perf_counter, time.process_time], discarded=0)
    wall, driver = medians(seconds), medians(seconds, clock=1)
    second_half = len(scenes) - len(scenes) // 2
    return {
        "drives": len(scenes),
        "frames": KEYFRAMES * len(scenes),
        "identical": all(each == same[0] for same in written.values() for each in same),
        "speedup": (wall["1 all"] - wall["1 half"]) / (wall["2 all"] - wall["2 half"]),
        "whole_speed_up": wall["1 all"] / wall["2 all"],
        "possible": 2 * wall["1 all"] / wall["together"],
        "driver_ms_per_scene": 1e3 * (driver["2 all"] - driver["2 half"]) / second_half,
        "replay_s": {name: wall[f"{jobs} all"] for jobs, name in enumerate(("alone", "one", "two"))},
        "rounds": rounds,
    }


def _of(function: Callable[[str, int], None], part: str, jobs: int) -> Callable[[object], None]:
    return lambda _: function(part, jobs)


def _together(source: Source, bundle: Path) -> None:
    """Two replays at the same time, each by a process with a core of its own."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as threads:

        def replayed(core: int) -> None:
            os.sched_setaffinity(0, {core})  # of this thread and the processes that it starts
            run_replay(source, bundle, Path(folder) / str(core), console=QUIET, jobs=1)

        for each in [threads.submit(replayed, core) for core in sorted(os.sched_getaffinity(0))[:2]]:
            each.result()
