"""How much faster than the vehicle drove a replay is, with all that it writes."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from deploy.replay.latency import STAGES
from deploy.replay.player import replay
from perception.data.nuscenes import NuScenesTables

QUIET = Console(quiet=True)


def replay_speed(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the drives over seconds of their replay, from opening the bundle to the last file.

    `writing` is what is left beside the stages of the frames: results, tracks, journal, statistics for the verdict,
    pictures and page of the report. Medians of the rounds.
    """
    tables = NuScenesTables(arguments.data, arguments.version)
    scenes = tables.scenes()[: arguments.scenes]
    driven = sum(_seconds(tables, scene) for scene in scenes)
    walls, shares = [], []
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            out = Path(folder) / "out"
            summary = replay(arguments.data, arguments.version, scenes, arguments.bundle, out, console=QUIET)
            walls.append(time.perf_counter() - start)
        frames = summary["frames"]
        stages = {stage: summary["latency_ms"][stage]["mean"] for stage in STAGES}
        shares.append(stages | {"writing": 1e3 * walls[-1] / frames - sum(stages.values())})
    return {
        "realtime_factor": driven / statistics.median(walls),
        "stage_ms": {name: statistics.median(each[name] for each in shares) for name in shares[0]},
        "frames": frames,
        "driven_s": driven,
        "replay_s": walls,
    }


def _seconds(tables: NuScenesTables, scene: str) -> float:
    """How long a scene lasts: its keyframes stand for half a second each."""
    return 0.5 * len(tables.samples(selectors=[scene]))
