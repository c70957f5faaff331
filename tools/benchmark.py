"""What benchmarks share: variants that alternate, their medians, commands of the product, data and configurations."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from perception.config import Config, find_config, load_config, parse_config
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.datasets.nuscenes.tables import only_version
from perception.simulate.simulate import simulate
from perception.training.adapt import read_task

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests" / "support"))  # what tests and benchmarks make alike
QUIET = Console(quiet=True)
CONFIGS = ROOT / "configs"


def recorded(name: str) -> Path:
    """A folder of recorded data, as the tests find it."""
    return Path(os.environ.get(f"PERCEPTION_{name.upper()}") or f"../shared/data/{name}")


KEYFRAMES, PANDASET = recorded("nuscenes"), recorded("pandaset")
KITTI_WEIGHTS = Path(os.environ.get("PERCEPTION_KITTI") or "../shared/data/pointpillars_kitti")
DEMO = Path("runs/demo")
QUICK = Path("runs/quick")  # what is made for quick runs


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


def simulated(data: Path, scenes: int, samples: int, seed: int, conditions: Sequence[str]) -> NuScenesTables:
    """Drives, simulated unless they are there."""
    if not data.exists():
        simulate(data, scenes, samples, seed, conditions)
    return NuScenesTables(data, only_version(data))


def drives(quick: bool) -> NuScenesTables:
    """25 drives of 12 s in all conditions, which take minutes to simulate; quick: two of 2 s."""
    data, scenes, samples = (QUICK / "drives", 2, 4) if quick else (Path("runs/drives"), 25, 24)
    return simulated(data, scenes, samples, 0, ["all"])


def with_tasks(name: str, files: Sequence[str], modules: bool = False) -> Config:
    """A configuration with the tasks of configs/FILE.yaml, and the modules that run for each of these alone."""
    content = load_config(find_config(name)).model_dump(mode="json")
    for file in files:
        added = read_task(find_config(file))
        content["tasks"] |= added["tasks"]
        if modules:
            content["modules"] += [
                {**module, "when": [*module.get("when", ()), *added["tasks"]]} for module in added["modules"]
            ]
    return parse_config(content, name)


class Commands:
    """Runs commands of the product as a user types them; their records are in OUT/commands."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def call(self, name: str, *words: object, **environment: str) -> dict[str, Any]:
        """Runs `perception` with these words, once: its `seconds` of processors, and what it `printed`."""
        record = self.out / "commands" / f"{name}.json"
        command = [sys.executable, "-m", "deploy.cli", *map(str, words)]
        if not record.exists():
            record.parent.mkdir(parents=True, exist_ok=True)
            given = os.environ | {"OMP_NUM_THREADS": "1"} | environment
            process = subprocess.Popen(command, env=given, stdout=subprocess.PIPE, text=True)
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
            sys.exit(f"{record}: is of {' '.join(found['command'])}; remove {self.out}")
        return found
