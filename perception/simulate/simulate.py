"""Simulated drive logs in the nuScenes schema."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from perception.datasets.nuscenes.lidarseg import TABLE as LIDARSEG
from perception.errors import InputError
from perception.rig import Rig, load_rig
from perception.simulate import recording
from perception.simulate.city import build_city
from perception.simulate.conditions import Course, parse, split
from perception.simulate.drive import Drive
from perception.simulate.layouts import layout_of
from perception.simulate.nuscenes_writer import VERSION, Row, fixed_tables, token, write_maps, write_tables
from perception.simulate.obstacles import CATEGORIES as UNKNOWN
from perception.simulate.recording import Run
from perception.simulate.world_files import Worlds
from perception.stores import remove_folder
from perception.taxonomy import load_taxonomy


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
        sweeps: LiDAR sweeps at 20 Hz before each keyframe, 0-10.
        rig: the vehicle's sensors; None: nuScenes' car.
        run: processes and progress.

    Raises:
        InputError: an argument is out of range, a sensor has no calibration, or `out` already holds such a log.
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
    courses = [each for each in condition_names if isinstance(each, Course)]
    if not courses:
        courses = parse(
            [each for each in condition_names if isinstance(each, str)], load_taxonomy("nuscenes"), Worlds()
        )
    longest = max(len(course.phases) for course in courses)
    if samples < longest:
        raise InputError(f"samples is {samples}: a drive in {longest} parts needs a keyframe for each")
    drives = [Drive(seed, n, courses[n % len(courses)], samples, sweeps, rig) for n in range(scenes)]
    begun = recording.begin(drives, out)
    layout = layout_of(courses[0].taxonomy)
    if layout.lidarseg and not begun:  # of an interrupted run; the devkit counts the files
        remove_folder(out / LIDARSEG / VERSION)
    further = UNKNOWN if courses[0].extras.obstacles else ()
    categories = tuple(dict.fromkeys((*layout.categories, *further)))
    tables = fixed_tables(rig, categories, layout.attributes, layout.lidarseg)
    for tables_of_drive in recording.record_all(drives, out, run):
        for name, rows in tables_of_drive.items():
            tables.setdefault(name, []).extend(rows)
    if layout.logs:
        tables["map"] = [_map_row(location, drives, out) for location in _locations(drives)]
    training, validation = split([drive.course for drive in drives])
    splits = {"sim_train": training, "sim_val": validation}
    write_tables(out, tables, {name: [drives[n].name for n in chosen] for name, chosen in splits.items()})
    recording.end(out)


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
