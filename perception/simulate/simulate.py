"""Simulated drive logs in the nuScenes schema, recorded in several processes."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from perception.datasets.nuscenes.labels import TABLE as LIDARSEG
from perception.datasets.nuscenes.labels import occ3d_file
from perception.errors import InputError
from perception.io.files import make_folder, write_atomically
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

# Records drives in several processes, each drive once: an interrupted run goes on with the drives that it has.

UNFINISHED = ".unfinished"  # folder below the dataroot with the tables of the drives that are recorded


def begin_run(drives: Sequence[Drive], out: Path) -> bool:
    """Prepare to record these drives below `out`; returns whether an earlier run has begun with the same drives.

    Else what it has recorded is not used.
    """
    folder = _tables_folder(drives, out)
    if folder.exists():
        return True
    remove_folder(folder.parent)
    make_folder(folder)
    return False


class Run(NamedTuple):
    """How drives are recorded.

    Attributes:
        jobs: processes that record a drive each; None: one for each processor.
        progress: is called with the number of keyframes that are recorded since the last call.
        ray: address of a Ray cluster, whose processes record instead.
    """

    jobs: int | None = None
    progress: Callable[[int], None] = lambda keyframes: None
    ray: str | None = None


def record_all(drives: Sequence[Drive], out: Path, run: Run) -> list[Tables]:
    """The tables of the drives, in their order, and the files of their sensors below `out`."""
    finished = _tables_folder(drives, out).relative_to(out)
    files = [out / finished / f"{drive.name}.json" for drive in drives]
    found = {i: dict(json.loads(file.read_bytes())) for i, file in enumerate(files) if file.exists()}
    rest = [i for i in range(len(drives)) if i not in found]
    for i in found:
        run.progress(drives[i].samples)
    jobs = min(len(rest), run.jobs or os.cpu_count() or 1)
    if not rest or (jobs == 1 and run.ray is None):
        return [found.get(i) or _record(_Place(out, finished), drives[i], run.progress) for i in range(len(drives))]
    out = out.absolute()
    opened, call = (
        (partial(_Place, out), _record) if run.ray is None else (partial(_shared_place, origin_of(out)), _put)
    )
    with open_pool(partial(opened, finished), jobs, run.ray) as workers:
        for i, tables in workers.run(call, [drives[i] for i in rest], lambda drive: drive.name):
            found[rest[i]] = tables
            run.progress(drives[rest[i]].samples)
    return [found[i] for i in range(len(drives))]


def end_run(out: Path) -> None:
    remove_folder(out / UNFINISHED)


class _Place(NamedTuple):
    """Where a process writes.

    Attributes:
        out: the dataroot.
        finished: folder below it with the tables of the drives that are recorded.
    """

    out: Path
    finished: Path


def _shared_place(out: Path, finished: Path) -> _Place:
    """The place on a machine of a cluster."""
    if not is_remote(out) and not (out / finished).exists():
        raise InputError(
            f"{out}: is another folder on {socket.gethostname()}; give one on a disk that all machines share, or in an "
            "object store"
        )
    return _Place(mirror_of(out, WRITTEN), finished)


def _put(place: _Place, drive: Drive) -> Tables:
    """As `_record`; the files of a drive for an object store are put there, its tables last, and removed here."""
    tables, out = _record(place, drive), place.out
    if origin_of(out) != out:
        rows = (row for name in ("sample_data", LIDARSEG) for row in tables.get(name, ()))
        names = [row["filename"] for row in rows]
        voxels = (occ3d_file(out, drive.name, row["token"]) for row in tables["sample"])
        names += [each.relative_to(out).as_posix() for each in voxels if each.exists()]
        names.append((place.finished / f"{drive.name}.json").as_posix())
        put_files(out, names)
        for name in names:
            (out / name).unlink()
    return tables


def _record(place: _Place, drive: Drive, progress: Callable[[int], None] = lambda keyframes: None) -> Tables:
    """The tables of a drive, after recording it."""
    tables = record(drive, place.out, partial(progress, 1))
    folder = make_folder(place.out / place.finished)
    write_atomically(folder / f"{drive.name}.json", json.dumps(tables).encode())
    return tables


def _tables_folder(drives: Sequence[Drive], out: Path) -> Path:
    """The folder with the tables of recorded drives, named after all drives and the code that records them."""
    return out / UNFINISHED / _hash(drives)


def _hash(drives: Sequence[Drive]) -> str:
    """Of the drives and of the code that records them."""
    digest = hashlib.sha256(repr(drives).encode())
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


# Simulated drive logs in the nuScenes schema.


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

    The same arguments give the same bytes, by any number of processes. An interrupted run leaves no version folder; the
    same call goes on with the drives that it has.

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
    begun = begin_run(drives, out)
    layout = layout_of(courses[0].taxonomy)
    if layout.lidarseg and not begun:  # of an interrupted run; the devkit counts the files
        remove_folder(out / LIDARSEG / VERSION)
    further = UNKNOWN if courses[0].extras.obstacles else ()
    categories = tuple(dict.fromkeys((*layout.categories, *further)))
    tables = make_fixed_tables(rig, categories, layout.attributes, layout.lidarseg)
    for tables_of_drive in record_all(drives, out, run):
        for name, rows in tables_of_drive.items():
            tables.setdefault(name, []).extend(rows)
    if layout.logs:
        tables["map"] = [_map_row(location, drives, out) for location in _locations(drives)]
    training, validation = split([drive.course for drive in drives])
    splits = {"sim_train": training, "sim_val": validation}
    write_tables(out, tables, {name: [drives[n].name for n in chosen] for name, chosen in splits.items()})
    end_run(out)


def _parse_courses(condition_names: Sequence[str] | Sequence[Course], samples: int) -> list[Course]:
    """The courses, parsed where they are names. InputError where one has a wrong rate, or more parts than keyframes."""
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
    """Where the drives are, in the order of the taxonomy."""
    values = drives[0].course.taxonomy.condition_values
    places = {drive.course.place.name: drive.location for drive in drives}
    return [places[name] for name in sorted(places, key=lambda name: values.index(name) if name in values else 0)]


def _map_row(location: str, drives: list[Drive], out: Path) -> Row:
    """Write the map of a location; its row. Streets are the same in all drives there."""
    there = [drive for drive in drives if drive.location == location]
    return {
        "token": token("map", location),
        "category": "semantic_prior",
        "filename": write_maps(out, build_city(there[0].course.place)),
        "log_tokens": [drive.token("log") for drive in there],
    }
