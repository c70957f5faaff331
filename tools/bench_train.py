"""Processor time of a training step without and with the allocator's setting (`keep_memory`)."""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from perception.commands.common import KEEP_MEMORY

SHORT, LONG = 2, 12  # steps; the difference leaves start and end of a run out
TRAINED = "002:0-16"  # frames of PandaSet
CONFIG = Path(__file__).parents[1] / "configs" / "kitti" / "pointpillars.yaml"


class Used(NamedTuple):
    seconds: float  # of the processors, in user mode and in the kernel
    kernel: float
    megabytes: float  # largest resident memory


def add_options(command: argparse.ArgumentParser) -> None:
    shared = Path("../shared/data")
    command.add_argument("--drives", type=Path, default=Path("runs/demo/drives"), help="for tiny")
    command.add_argument(
        "--pandaset", type=Path, default=shared / "pandaset", help="for the module of the KITTI network"
    )
    command.add_argument("--weights", type=Path, default=shared / "pointpillars_kitti" / "pointpillars.safetensors")
    command.add_argument("--rounds", type=int, default=3)
    command.set_defaults(run=train)


def train(arguments: argparse.Namespace) -> dict[str, Any]:
    """Processor-seconds of a step of `perception train configs/tiny.yaml` and of `perception adapt` on PandaSet.

    Each run is a command of its own; a step is the difference between 12 and 2 steps, by 10. The sides alternate.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        subprocess.run(
            [*_perception(), "import-pointpillars", CONFIG, arguments.weights, "--out", out / "kitti"],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        commands = {
            "tiny": ["train", "tiny", "--data", arguments.drives],
            "kitti": [
                "adapt", out / "kitti", "--data", arguments.pandaset, "--rig", "pandaset_64", "--split", "all",
                "--scenes", TRAINED, "--add", "low_rank:pandaset", "--slots", "trunk.stage*.?,trunk.lift?,heads.*",
                "--option", "rank=1",
            ],
        }  # fmt: skip
        result: dict[str, Any] = {}
        for threads in ("1", "all"):
            steps = {name: _compared(command, threads, out, arguments.rounds) for name, command in commands.items()}
            result["one_thread" if threads == "1" else "all_threads"] = steps
    single = result["one_thread"]
    return {
        "cpu_seconds_per_step": {
            name: {side: values[side]["seconds"] for side in ("default", "kept")} for name, values in single.items()
        },
        **{f"speedup_{name}": values["speedup"] for name, values in single.items()},
        **result,
        "rounds": arguments.rounds,
    }


def _compared(command: list[Any], threads: str, out: Path, rounds: int) -> dict[str, Any]:
    """Medians of both sides, and the ratios of their seconds and of their memory."""
    used: dict[str, list[Used]] = {"default": [], "kept": []}
    for _ in range(rounds):
        for side, values in used.items():
            short, long = (_run([*command, "--steps", steps], threads, side, out) for steps in (SHORT, LONG))
            per_step = ((b - a) / (LONG - SHORT) for a, b in zip(short[:2], long[:2], strict=True))
            values.append(Used(*per_step, long.megabytes))
    medians = {
        side: {name: statistics.median(getattr(each, name) for each in values) for name in Used._fields}
        for side, values in used.items()
    }
    default, kept = medians["default"], medians["kept"]
    return {
        **medians,
        "speedup": default["seconds"] / kept["seconds"],
        "memory_ratio": kept["megabytes"] / default["megabytes"],
    }


def _run(command: list[Any], threads: str, side: str, out: Path) -> Used:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    environment |= {KEEP_MEMORY: "0" if side == "default" else "1"}
    if threads == "1":
        environment |= {"OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(dir=out) as folder:
        full = [str(part) for part in (*_perception(), *command, "--out", Path(folder) / "run")]
        process = subprocess.Popen(full, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"{' '.join(full)}: exit code {process.returncode}")
    return Used(used.ru_utime + used.ru_stime, used.ru_stime, used.ru_maxrss / 1024)


def _perception() -> list[str]:
    return [sys.executable, "-m", "deploy.cli"]
