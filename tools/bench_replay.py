"""Replays: their speed compared with the drive, and by several processes."""

from __future__ import annotations

import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmark import DEMO, QUICK, QUIET, drives, median_seconds, simulated

from deploy.replay.latency import STAGES
from deploy.replay.run import replay as run_replay
from deploy.replay.settings import Source
from deploy.runtime import Runtime

BUNDLE = DEMO / "bundle"
FILES = ("results.json", "tracks.json", "statistics.jsonl", "sources.json")
KEYFRAMES, CONDITIONS = 6, ("clear-day-boston", "rain-night-singapore")  # of each drive of a fleet


def replay(quick: bool) -> dict[str, Any]:
    """Duration of ten drives divided by that of their replay, from opening the demo's bundle to the last file.

    Frames are read and files written in parallel with the network, so the stages add up to more than a frame takes.
    `speed_up_of_2_processes` is that of `--jobs 2`, starting them included. `network_alone_factor` is what
    `realtime_factor` would be if only the network took time.
    """
    tables, rounds = drives(quick), 1 if quick else 3
    names = tables.scenes()[:10]
    source, frames = Source(tables.dataroot, None, names), len(tables.samples(selectors=names))
    driven = 0.5 * frames  # s
    stages: list[dict[str, float]] = []

    def alone(_: object) -> None:
        summary = _replay(source)
        stages.append({stage: summary["latency_ms"][stage]["mean"] for stage in STAGES})

    variants = {"alone": alone, "several": lambda _: _replay(source, jobs=2)}
    wall = median_seconds(variants, rounds, discarded=0)
    stage_ms = {stage: median(each[stage] for each in stages) for stage in STAGES}
    runtime = Runtime(BUNDLE)
    network = median_seconds({"check": lambda _: runtime.check()}, 15)["check"]
    return {
        "realtime_factor": driven / wall["alone"],
        "speed_up_of_2_processes": wall["alone"] / wall["several"],
        "stage_ms": stage_ms,
        "network_alone_factor": driven / frames / network,
    }


def fleet(quick: bool) -> dict[str, Any]:
    """Replays of 40 drives by one process alone, and by one and two processes of a pool.

    `replay_s` are the seconds from opening the bundle to the last file. `speedup` compares one and two processes over
    the second half of the drives, which leaves out what a replay does once: all drives less the first half.
    `driver_ms_per_scene` is the driver's own processor time for a drive of the second half. `identical`: all replays of
    the same drives wrote the same bytes.
    """
    rounds, data, count = (1, QUICK / "fleet", 4) if quick else (3, Path("runs/fleet"), 40)
    scenes = simulated(data, count, KEYFRAMES, 21, CONDITIONS).scenes()
    sources = {"all": Source(data, None, scenes), "half": Source(data, None, scenes[: count // 2])}
    written: dict[str, list[list[bytes]]] = {part: [] for part in sources}

    used: dict[str, list[float]] = {}  # seconds of this process

    def replayed(part: str, jobs: int, _: object) -> None:
        with tempfile.TemporaryDirectory() as folder:
            before = time.process_time()
            run_replay(sources[part], BUNDLE, Path(folder), console=QUIET, jobs=jobs)
            used.setdefault(f"{jobs} {part}", []).append(time.process_time() - before)
            written[part].append([(Path(folder) / name).read_bytes() for name in FILES])

    runs = ((0, "all"), (1, "half"), (1, "all"), (2, "half"), (2, "all"))
    variants = {f"{jobs} {part}": partial(replayed, part, jobs) for jobs, part in runs}
    wall, driver = median_seconds(variants, rounds, discarded=0), {name: median(each) for name, each in used.items()}
    return {
        "drives": count,
        "frames": KEYFRAMES * count,
        "identical": all(each == same[0] for same in written.values() for each in same),
        "speedup": (wall["1 all"] - wall["1 half"]) / (wall["2 all"] - wall["2 half"]),
        "driver_ms_per_scene": 1e3 * (driver["2 all"] - driver["2 half"]) / (count - count // 2),
        "replay_s": {name: wall[f"{jobs} all"] for jobs, name in enumerate(("alone", "one", "two"))},
    }


def _replay(source: Source, jobs: int = 0) -> dict[str, Any]:
    """The summary of a replay, whose files are gone."""
    with tempfile.TemporaryDirectory() as folder:
        return run_replay(source, BUNDLE, Path(folder) / "out", jobs=jobs, console=QUIET)
