"""Drives to replay in several processes, and the processes to kill."""

import json
import os
import random
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

from conftest import token, write_tiny


def write_scenes(root: Path, scenes: int, keyframes: int) -> None:
    """A dataroot with version v1.0-tiny: its one drive in as many scenes, one after the other."""
    write_tiny(root, scenes * keyframes)
    folder = root / "v1.0-tiny"
    samples, (scene,) = (json.loads((folder / f"{name}.json").read_text()) for name in ("sample", "scene"))
    for i, sample in enumerate(samples):
        own, place = divmod(i, keyframes)
        sample["scene_token"] = token("scene", own)
        sample["prev"] = "" if place == 0 else sample["prev"]
        sample["next"] = "" if place == keyframes - 1 else sample["next"]
    rows = [{**scene, "token": token("scene", i), "name": f"scene-{1 + i:04}"} for i in range(scenes)]
    (folder / "sample.json").write_text(json.dumps(samples))
    (folder / "scene.json").write_text(json.dumps(rows))


def children(process: int) -> list[int]:
    """Processes that this one started, without the one that watches over shared resources."""
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
    """Kill the driver, or one of its workers if there is any; which, or "" if the driver was done before."""
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
