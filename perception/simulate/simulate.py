"""Simulated drive logs in nuScenes' own schema."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import cv2

from perception.errors import InputError
from perception.frame import CAMERAS, LIDAR
from perception.simulate import conditions
from perception.simulate.city import build_city
from perception.simulate.drive import Drive, record
from perception.simulate.nuscenes_writer import VERSION, Tables, fixed_tables, token, write_maps, write_tables

Progress = Callable[[int, int], None]  # keyframes done, keyframes in all


def simulate(
    out: Path,
    scenes: int,
    samples: int,
    seed: int,
    condition_names: Sequence[str],
    sweeps: int = 0,
    progress: Progress = lambda done, total: None,
) -> None:
    """Write a drive log to `out` that `NuScenes('v1.0-sim', out)` and `NuScenesMap` load.

    scenes drives of `samples` keyframes at 2 Hz each, going through the conditions in turn, with up to `sweeps`
    (0-10) LiDAR sweeps at 20 Hz before each keyframe. A drive of several conditions changes on its way. The same
    arguments give the same bytes, whatever the number of processors. The version folder appears last, so a killed run
    leaves none.

    Raises InputError if the arguments make no sense or `out` holds such a log already.
    """
    for name, value, low, high in (
        ("scenes", scenes, 1, 9999),
        ("samples", samples, 1, 400),
        ("sweeps", sweeps, 0, 10),
        ("seed", seed, 0, 2**31),
    ):
        if not low <= value <= high:
            raise InputError(f"{name} is {value}: give a number from {low} to {high}")
    out = Path(out)
    if (out / VERSION).exists():
        raise InputError(f"{out} already holds a {VERSION} log: choose another folder, or delete this one first")
    listed = conditions.parse(condition_names)
    longest = max(map(len, listed))
    if samples < longest:
        raise InputError(f"samples is {samples}: a drive in {longest} parts needs a keyframe for each")
    drives = [Drive(seed, n, listed[n % len(listed)], samples, sweeps) for n in range(scenes)]
    for channel in (LIDAR, *CAMERAS):
        (out / "samples" / channel).mkdir(parents=True, exist_ok=True)
    if sweeps:
        (out / "sweeps" / LIDAR).mkdir(parents=True, exist_ok=True)
    recorded = _record_all(drives, out, progress)
    tables = fixed_tables()
    for part in recorded:
        for name, rows in part.items():
            tables.setdefault(name, []).extend(rows)
    tables["map"] = [
        {
            "token": token("map", build_city(city).plan.style.location),
            "category": "semantic_prior",
            "filename": write_maps(out, build_city(city)),
            "log_tokens": [drive.token("log") for drive in drives if drive.city == city],
        }
        for city in conditions.CITIES
        if any(drive.city == city for drive in drives)
    ]
    training, validation = conditions.split([drive.parts for drive in drives])
    splits = {"sim_train": training, "sim_val": validation}
    write_tables(out, tables, {name: [drives[n].name for n in chosen] for name, chosen in splits.items()})


def _record_all(drives: list[Drive], out: Path, progress: Progress) -> list[Tables]:
    """Record the drives, two or more at a time where there are processors for it; results in the drives' order."""
    total, done = sum(drive.samples for drive in drives), 0
    workers = min(len(drives), os.cpu_count() or 1)
    if workers == 1:
        tables = []
        for drive in drives:

            def advance() -> None:
                nonlocal done
                done += 1
                progress(done, total)

            tables.append(record(drive, out, advance))
        return tables
    context = multiprocessing.get_context("spawn")
    ticks = context.Queue()
    with ProcessPoolExecutor(workers, context, _start_worker, (ticks,)) as pool:
        futures = [pool.submit(_record_in_worker, drive, out) for drive in drives]
        pending = set(futures)
        while pending:
            finished, pending = wait(pending, timeout=0.2)
            for future in finished:
                future.result()  # raises here and now what went wrong there
            while not ticks.empty():
                ticks.get()
                done += 1
                progress(done, total)
        return [future.result() for future in futures]


_ticks: Any = None  # this worker's way to say that a keyframe is done


def _start_worker(ticks: Any) -> None:
    global _ticks  # noqa: PLW0603 - the only way to hand a queue to a pool's workers
    _ticks = ticks
    cv2.setNumThreads(1)  # the drives already use all processors


def _record_in_worker(drive: Drive, out: Path) -> Tables:
    return record(drive, out, lambda: _ticks.put(1))
