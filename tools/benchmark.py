"""What benchmarks share: variants that alternate, their medians, commands of the product, data and configurations."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

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
KITTI_WEIGHTS = Path(os.environ.get("PERCEPTION_POINTPILLARS_KITTI") or "../shared/data/pointpillars_kitti")
DEMO = Path("runs/demo")
QUICK = Path("runs/quick")  # what is made for quick runs


def folder(name: str, quick: bool) -> Path:
    """Where commands that ended are not repeated; of a quick run it is empty."""
    if quick:
        shutil.rmtree(QUICK / name, ignore_errors=True)
    return QUICK / name if quick else Path("runs") / name


def median_seconds(
    variants: Mapping[str, Callable[[Any], object]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    inputs: Sequence[Any] = (None,),
    discarded: int = 2,
) -> dict[str, float]:
    """The median of each variant over rounds and inputs: each round calls every variant with every input.

    Args:
        discarded: further rounds, before those that count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for i in range(discarded + rounds):
        for given in inputs:
            for name, variant in variants.items():
                before = clock()
                variant(given)
                if i >= discarded:
                    seconds[name].append(clock() - before)
    return {name: median(each) for name, each in seconds.items()}


def simulated(data: Path, scenes: int, samples: int, seed: int, conditions: Sequence[str]) -> NuScenesTables:
    """Drives, simulated unless they are there."""
    if not data.exists():
        simulate(data, scenes, samples, seed, conditions)
    return NuScenesTables(data, only_version(data))


def drives(quick: bool) -> NuScenesTables:
    """25 drives of 12 s in all conditions, which take minutes to simulate; quick: two of 2 s."""
    data, scenes, samples = (QUICK / "drives", 2, 4) if quick else (Path("runs/drives"), 25, 24)
    return simulated(data, scenes, samples, 0, ["all"])


def with_tasks(name: str, files: Sequence[str]) -> Config:
    """A configuration with the tasks of configs/FILE.yaml, without the modules that these may have for themselves."""
    content = load_config(find_config(name)).model_dump(mode="json")
    for file in files:
        content["tasks"] |= read_task(find_config(file))["tasks"]
    return parse_config(content, name)


class Commands:
    """Runs commands of the product as a user types them; their records are in OUT/commands."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def call(self, name: str, *words: object, **environment: str) -> dict[str, Any]:
        """Runs `perception` with these words, once: its `seconds` of processors, and what it `printed`."""
        record, log = (self.out / "commands" / f"{name}.{end}" for end in ("json", "log"))
        command = [sys.executable, "-m", "deploy.cli", *map(str, words)]
        if not record.exists():
            record.parent.mkdir(parents=True, exist_ok=True)
            given = os.environ | {"OMP_NUM_THREADS": "1"} | environment
            with log.open("w") as errors:
                process = subprocess.Popen(command, env=given, stdout=subprocess.PIPE, stderr=errors, text=True)
            assert process.stdout is not None
            printed = process.stdout.read()
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                sys.exit(f"{' '.join(command)}: exit code {process.returncode}\n{log.read_text()[-2000:]}")
            content = {"command": command[3:], "seconds": used.ru_utime + used.ru_stime, "printed": printed}
            record.write_text(json.dumps(content))
        found: dict[str, Any] = json.loads(record.read_text())
        if found["command"] != command[3:]:
            sys.exit(f"{record}: is of {' '.join(found['command'])}; remove {self.out}")
        return found

    def json(self, name: str, *words: object) -> dict[str, Any]:
        """What a command prints with --json."""
        return dict(json.loads(self.call(name, *words, "--json")["printed"]))
