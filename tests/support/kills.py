"""Kills of workers and drivers at random moments."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path


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


def killed(start: Callable[[], BaseProcess], kills: int, rng: random.Random, longest: float) -> Counter[str]:
    """Kill so many processes of a run, which is started again after each death of its driver; who was killed.

    Args:
        longest: s between two kills.
    """
    found: Counter[str] = Counter()
    while found.total() < kills:
        driver = start()
        while driver.is_alive():
            driver.join(rng.uniform(0, longest))
            if driver.is_alive() and found.total() < kills and (which := kill_one(driver, rng)):
                found[which] += 1
    return found
