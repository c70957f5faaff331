"""Processor time of a training step without and with the allocator's setting (`keep_memory`)."""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from benchmark import CONFIGS, DEMO, KITTI_WEIGHTS, PANDASET, Commands

from perception.commands.common import KEEP_MEMORY

SHORT, LONG = 2, 12  # steps; the difference leaves start and end of a run out


def train(quick: bool) -> dict[str, Any]:
    """Processor-seconds of a step of `perception train configs/tiny.yaml` and of `perception adapt` on PandaSet.

    Each run is a command of its own, on one thread; a step is the difference between 12 and 2 steps, by 10. `default`:
    the allocator as it is; `kept`: with the setting.
    """
    long, rounds = (SHORT + 1, 1) if quick else (LONG, 3)
    with tempfile.TemporaryDirectory() as folder:
        commands, kitti = Commands(Path(folder)), Path(folder) / "kitti"
        weights = KITTI_WEIGHTS / "pointpillars.safetensors"
        commands.call("import", "import", CONFIGS / "kitti/pointpillars.yaml", weights, "--out", kitti)
        added = ("--add", "low_rank:pandaset", "--option", "rank=1", "--slots", "trunk.stage*.?,trunk.lift?,heads.*")
        frames = ("--data", PANDASET, "--rig", "pandaset_64", "--split", "all", "--scenes", "002:0-16")
        trainings: dict[str, tuple[object, ...]] = {
            "tiny": ("train", CONFIGS / "tiny.yaml", "--data", DEMO / "drives"),
            "kitti": ("adapt", kitti, *added, *frames),
        }

        def seconds(name: str, side: str, i: int, steps: int) -> float:
            run = f"{name}-{side}-{i}-{steps}"
            words = (*trainings[name], "--steps", steps, "--out", Path(folder) / run)
            return float(commands.call(run, *words, **{KEEP_MEMORY: "1" if side == "kept" else "0"})["seconds"])

        measured: dict[str, dict[str, list[float]]] = {name: {"default": [], "kept": []} for name in trainings}
        for i in range(rounds):
            for name, sides in measured.items():
                for side, each in sides.items():
                    each.append((seconds(name, side, i, long) - seconds(name, side, i, SHORT)) / (long - SHORT))
    step = {name: {side: median(each) for side, each in sides.items()} for name, sides in measured.items()}
    return {
        "cpu_seconds_per_step": step,
        **{f"speedup_{name}": sides["default"] / sides["kept"] for name, sides in step.items()},
        "rounds": rounds,
    }
