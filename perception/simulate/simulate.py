"""Simulated drive logs in the nuScenes schema, recorded in several processes."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from perception.datasets.nuscenes.labels import TABLE as LIDARSEG
from perception.datasets.nuscenes.labels import occ3d_file
from perception.errors import InputError
from perception.io.files import make_folder
from perception.io.stores import WRITTEN, is_remote, mirror_of, origin_of, put_files, remove_folder
from perception.io.workers import open_pool
from perception.rig import Rig, load_rig
from perception.simulate.city import build_city
from perception.simulate.conditions import Course, parse, split
from perception.simulate.drive import RATES, Drive, record
from perception.simulate.nuscenes_writer import (
    VERSION,
    Row,
    Tables,
    layout_of,
    make_fixed_tables,
    token,
    write_maps,
    write_tables,
)
from perception.simulate.obstacles import CATEGORIES as UNKNOWN
from perception.simulate.worlds import Worlds
from perception.taxonomy import load_taxonomy


class Run(NamedTuple):
    """How drives are recorded."""

    jobs: int | None = None  # processes that record a drive each; None: one for each processor
    progress: Callable[[int], None] = lambda keyframes: None  # gets the number of new keyframes
    ray: str | None = None  # address of a Ray cluster, whose processes record instead


def simulate(
    out: Path,
    scenes: int,
    samples: int,
    seed: int,
    condition_names: Sequence[str] | Sequence[Course],
    sweeps: int = 0,
    rig: Rig | None = None,
    run: Run = Run(),  # noqa: B008 - it is immutable
) -> None:
    """Write a drive log to `out` that `NuScenes('v1.0-sim', out)` and `NuScenesMap` load, or the taxonomy's devkit.

    The same arguments give the same bytes, by any number of processes. An interrupted run leaves no version folder.

    Args:
        scenes: number of drives; they take the conditions in turn.
        samples: keyframes of each drive, at 2 Hz.
        condition_names: of nuScenes' taxonomy such as rain-night-CITY, a/b for a drive that changes from a to b, or
            what `conditions.parse` made of names of another taxonomy.
        sweeps: LiDAR sweeps at 20 Hz before each frame, 0-10.
        rig: the vehicle's sensors; None: nuScenes' car.
        run: processes and progress.
    """
    for name, value, low, high in (
        ("scenes", scenes, 1, 9999),
        ("samples", samples, 1, 400),
        ("sweeps", sweeps, 0, 10),
        ("seed", seed, 0, 2**31),
    ):
        if not low <= value <= high:
            raise InputError(f"{name} is {value}: give a number from {low} to {high}")
    out, rig = Path(out), rig or load_rig("nuscenes")
    rig.require_calibration()
    if (out / VERSION).exists():
        raise InputError(f"{out} already holds a {VERSION} log: choose another folder, or delete this one first")
    courses = _parse_courses(condition_names, samples)
    drives = [Drive(seed, n, courses[n % len(courses)], samples, sweeps, rig) for n in range(scenes)]
    layout = layout_of(courses[0].taxonomy)
    if layout.lidarseg:  # of an interrupted run; the devkit counts the files
        remove_folder(out / LIDARSEG / VERSION)
    further = UNKNOWN if courses[0].extras.obstacles else ()
    categories = tuple(dict.fromkeys((*layout.categories, *further)))
    tables = make_fixed_tables(rig, categories, layout.attributes, layout.lidarseg)
    for tables_of_drive in _record_all(drives, make_folder(out), run):
        for name, rows in tables_of_drive.items():
            tables.setdefault(name, []).extend(rows)
    if layout.logs:
        tables["map"] = [_map_row(location, drives, out) for location in _locations(drives)]
    training, validation = split([drive.course for drive in drives])
    splits = {"sim_train": training, "sim_val": validation}
    write_tables(out, tables, {name: [drives[n].name for n in chosen] for name, chosen in splits.items()})


def _record_all(drives: Sequence[Drive], out: Path, run: Run) -> list[Tables]:
    """Record the drives; returns the tables of each."""
    jobs = min(len(drives), run.jobs or os.cpu_count() or 1)
    if jobs == 1 and run.ray is None:
        return [record(out, drive, partial(run.progress, 1)) for drive in drives]
    out, tables = out.absolute(), dict[int, Tables]()
    with TemporaryDirectory(prefix=".recording-", dir=out) as mark:
        opened: Callable[[], Path] = partial(Path, out)
        if run.ray is not None:
            opened = partial(_shared_folder, origin_of(out), Path(mark).name)
        with open_pool(opened, jobs, run.ray) as workers:
            call = record if run.ray is None else _put
            for i, tables_of_drive in workers.run(call, drives, lambda drive: drive.name):
                tables[i] = tables_of_drive
                run.progress(drives[i].samples)
    return [tables[i] for i in range(len(drives))]


def _shared_folder(out: Path, mark: str) -> Path:
    """Where a machine of a cluster writes. The driver has made a folder with the name `mark` in `out`."""
    if not is_remote(out) and not (out / mark).exists():
        raise InputError(
            f"{out}: is another folder on {socket.gethostname()}; give one on a disk that all machines share, or in an "
            "object store"
        )
    return mirror_of(out, WRITTEN)


def _put(out: Path, drive: Drive) -> Tables:
    """Record a drive; its files for an object store are put there, and removed here."""
    tables = record(out, drive)
    if origin_of(out) != out:
        rows = (row for name in ("sample_data", LIDARSEG) for row in tables.get(name, ()))
        voxels = (occ3d_file(out, drive.name, row["token"]) for row in tables["sample"])
        names = [row["filename"] for row in rows]
        names += [file.relative_to(out).as_posix() for file in voxels if file.exists()]
        put_files(out, names)
        for name in names:
            (out / name).unlink()
    return tables


def _parse_courses(condition_names: Sequence[str] | Sequence[Course], samples: int) -> list[Course]:
    """The courses, parsed where they are names."""
    courses = [each for each in condition_names if isinstance(each, Course)]
    if not courses:
        conditions = [each for each in condition_names if isinstance(each, str)]
        courses = parse(conditions, load_taxonomy("nuscenes"), Worlds())
    if wrong := [course.extras.rate for course in courses if course.extras.rate not in RATES]:
        raise InputError(f"rate is {wrong[0]}: give {', '.join(map(str, RATES))} frames per second")
    longest = max(len(course.phases) for course in courses)
    if samples < longest:
        raise InputError(f"samples is {samples}: a drive in {longest} parts needs a keyframe for each")
    return courses


def _locations(drives: list[Drive]) -> list[str]:
    """The locations of the drives, in the order of the taxonomy."""
    values = drives[0].course.taxonomy.condition_values
    places = {drive.course.place.name: drive.location for drive in drives}
    return [places[name] for name in sorted(places, key=lambda name: values.index(name) if name in values else 0)]


def _map_row(location: str, drives: list[Drive], out: Path) -> Row:
    """Write the map of a location, which all drives there share; returns its row."""
    there = [drive for drive in drives if drive.location == location]
    return {
        "token": token("map", location),
        "category": "semantic_prior",
        "filename": write_maps(out, build_city(there[0].course.place)),
        "log_tokens": [drive.token("log") for drive in there],
    }
