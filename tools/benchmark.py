"""What benchmarks share: variants that alternate, their medians, commands of the product, and drives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.datasets.nuscenes.tables import only_version
from perception.simulate.simulate import simulate

QUIET = Console(quiet=True)
SHARED = Path("../shared/data")
KEYFRAMES = SHARED / "nuscenes"  # real ones, v1.0-mini
DRIVES = Path("runs/drives")  # simulated unless they are there

Rounds = Annotated[int, typer.Option(help="Of all variants, one after the other.")]
NuScenes = Annotated[Path, typer.Option("--data", help="Real keyframes, v1.0-mini.")]
Bundle = Annotated[Path, typer.Option(help="An exported bundle.")]


def measure_times(
    variants: Mapping[str, Callable[[Any], object]],
    rounds: int,
    clocks: Sequence[Callable[[], float]] = (time.perf_counter,),
    inputs: Sequence[Any] = (None,),
    discarded: int = 2,
) -> dict[str, np.ndarray]:
    """Seconds of each variant, (clocks, rounds x inputs): each round calls every variant with every input.

    Args:
        discarded: further rounds, before those that count.
    """
    seconds: dict[str, list[list[float]]] = {name: [] for name in variants}
    for i in range(discarded + rounds):
        for given in inputs:
            for name, variant in variants.items():
                before = [clock() for clock in clocks]
                variant(given)
                after = [clock() for clock in clocks]
                if i >= discarded:
                    seconds[name].append([b - a for a, b in zip(before, after, strict=True)])
    return {name: np.array(each).T for name, each in seconds.items()}


def medians(seconds: Mapping[str, np.ndarray], clock: int = 0) -> dict[str, float]:
    """The median of each variant by one clock."""
    return {name: float(np.median(each[clock])) for name, each in seconds.items()}


def drives(data: Path) -> NuScenesTables:
    """The tables of a dataroot; those of DRIVES, 25 drives of 12 s in all conditions, take minutes to simulate."""
    if data == DRIVES and not data.exists():
        simulate(data, 25, 24, 0, ["all"])
    return NuScenesTables(data, only_version(data))


class Commands:
    """Runs commands of the product as a user types them; their records are in OUT/commands."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def call(self, name: str, *words: object) -> dict[str, Any]:
        """Runs `perception` with these words, once: its `seconds` of processors, and what it `printed`."""
        record = self.out / "commands" / f"{name}.json"
        command = [sys.executable, "-m", "deploy.cli", *map(str, words)]
        if not record.exists():
            record.parent.mkdir(parents=True, exist_ok=True)
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
            assert process.stdout is not None
            printed = process.stdout.read()
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                sys.exit(f"{' '.join(command)}: exit code {process.returncode}")
            content = {"command": command[3:], "seconds": used.ru_utime + used.ru_stime, "printed": printed}
            record.write_text(json.dumps(content))
        found: dict[str, Any] = json.loads(record.read_text())
        if found["command"] != command[3:]:
            sys.exit(f"{record}: is of {' '.join(found['command'])}; give another --out for {' '.join(command[3:])}")
        return found
