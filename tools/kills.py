"""Kills workers, drivers and trainers at random moments, and compares the results with those of undisturbed runs.

python tools/kills.py --bundle runs/demo/bundle --data runs/fleet --kills 100 --json
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import multiprocessing.context
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from rich.console import Console

from deploy.replay.run import replay
from deploy.replay.settings import Source
from perception.config import Config, find_config, load_config
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.datasets.nuscenes.tables import only_version
from perception.training.checkpoint import newest
from perception.training.loop import train

RESULTS = ("results.json", "tracks.json", "statistics.jsonl", "sources.json")
STEPS, EVERY = 24, 2  # of a training, and between its checkpoints
LONGEST = 6.0  # s between two kills


def children(process: int) -> list[int]:
    """Processes that this one started to work for it."""
    try:
        found = Path(f"/proc/{process}/task/{process}/children").read_text().split()
        return [int(each) for each in found if b"spawn_main" in Path(f"/proc/{each}/cmdline").read_bytes()]
    except OSError:
        return []  # it ended meanwhile


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def kill_one(driver: BaseProcess, rng: random.Random) -> str:
    """Kill a driver, or one of its workers if it has any; which, or "" if it was done before."""
    workers = children(driver.pid or 0)
    chosen = rng.choice(["driver", "worker"]) if workers else "driver"
    try:
        os.kill(rng.choice(workers) if chosen == "worker" else driver.pid or 0, signal.SIGKILL)
    except ProcessLookupError:
        return ""
    if chosen == "driver":
        driver.join()
        ends = time.monotonic() + 60
        while any(map(is_alive, workers)):  # they end by themselves
            assert time.monotonic() < ends, "a worker goes on without its driver"
            time.sleep(0.01)
        return "" if driver.exitcode == 0 else "driver"
    return chosen


def killed(start: Callable[[], BaseProcess], kills: int, rng: random.Random, longest: float = LONGEST) -> Counter[str]:
    """Kill so many processes of a run, which is started again after each death of its driver; who was killed."""
    found: Counter[str] = Counter()
    while found.total() < kills:
        driver = start()
        while driver.is_alive():
            driver.join(rng.uniform(0, longest))
            if driver.is_alive() and found.total() < kills and (which := kill_one(driver, rng)):
                found[which] += 1
    return found


def replays(bundle: Path, data: Path, out: Path, kills: int, rng: random.Random) -> dict[str, Any]:
    """Replays by two processes; each that ends is compared and begun anew."""
    source = Source(data, only_version(data))
    _replayed(source, bundle, out / "whole", 0)
    context, same = _context(), []

    def start() -> BaseProcess:
        if (out / "killed" / "replay.json").exists():
            same.append(_same(out / "killed", out / "whole"))
            shutil.rmtree(out / "killed")
        process = context.Process(target=_replayed, args=(source, bundle, out / "killed", 2))
        process.start()
        return process

    found = killed(start, kills, rng)
    _replayed(source, bundle, out / "killed", 2)
    same.append(_same(out / "killed", out / "whole"))
    return {"kills": dict(found), "ended": len(same), "same_bytes": all(same)}


def _context() -> multiprocessing.context.BaseContext:
    """Starts processes that have imported everything, else most would be killed while they import."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["deploy.replay.run", "deploy.engines.onnxruntime", "perception.training.loop"])
    return context


def _replayed(source: Source, bundle: Path, out: Path, jobs: int) -> None:
    replay(source, bundle, out, console=Console(quiet=True), jobs=jobs)


def _same(a: Path, b: Path) -> bool:
    return all((a / name).read_bytes() == (b / name).read_bytes() for name in RESULTS)


def trainings(data: Path, out: Path, kills: int, rng: random.Random) -> dict[str, Any]:
    """Trainings of `tiny`; each that ends is compared and begun anew."""
    given = load_config(find_config("tiny"))
    steps = given.train.model_copy(update={"steps": STEPS, "checkpoint_every": EVERY})
    config = given.model_copy(update={"train": steps})
    last = _trained(config, data, out / "whole")
    context, same = _context(), []

    def start() -> BaseProcess:
        if (out / "killed" / "checkpoints" / last.name).exists():
            same.append(_equal(out / "killed" / "checkpoints" / last.name, last))
            shutil.rmtree(out / "killed")
        process = context.Process(target=_trained, args=(config, data, out / "killed"))
        process.start()
        return process

    found = killed(start, kills, rng, longest=4 * LONGEST)
    same.append(_equal(_trained(config, data, out / "killed"), last))
    return {"kills": dict(found), "ended": len(same), "same_bytes": all(same)}


def _trained(config: Config, data: Path, run: Path) -> Path:
    return train(config, NuScenesTables(data, only_version(data)), None, run, resume=newest(run) is not None)


def _equal(a: Path, b: Path) -> bool:
    return all((a / each.name).read_bytes() == each.read_bytes() for each in b.glob("*.safetensors"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=Path("runs/demo/bundle"))
    parser.add_argument("--data", type=Path, default=Path("runs/fleet"), help="dataroot of drives")
    parser.add_argument("--kills", type=int, default=100, help="three quarters in replays, the others in trainings")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    rng, in_trainings = random.Random(arguments.seed), arguments.kills // 4
    with tempfile.TemporaryDirectory() as folder:
        found = {
            "replays": replays(
                arguments.bundle, arguments.data, Path(folder) / "replays", arguments.kills - in_trainings, rng
            ),
            "trainings": trainings(arguments.data, Path(folder) / "trainings", in_trainings, rng),
        }
    print(json.dumps(found) if arguments.json else "\n".join(f"{name}: {each}" for name, each in found.items()))


if __name__ == "__main__":
    main()
