"""Writes the tables and maps of a simulated drive log as nuScenes lays them out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from perception.files import atomic_folder, write_atomically
from perception.rig import Rig, RigCamera, RigSensor
from perception.rotations import quaternion
from perception.simulate.city import City
from perception.simulate.map_writer import map_expansion
from perception.simulate.snapshot import Ground

VERSION = "v1.0-sim"
Row = dict[str, Any]
Tables = dict[str, list[Row]]
VISIBILITY_LIMITS = (0.4, 0.6, 0.8)  # visible shares between the four levels of nuScenes
VISIBILITY_LEVELS = ("0-40", "40-60", "60-80", "80-100")  # %


def token(*parts: object) -> str:
    """A token derived from the parts, so that it is the same in every run."""
    return hashlib.md5("/".join(map(str, parts)).encode()).hexdigest()


def visibility_token(share: float) -> str:
    """Token of the visibility level of a share; the lowest for NaN, which is in no image."""
    return str(1 + sum(share >= limit for limit in VISIBILITY_LIMITS))  # NaN is not >= anything


def fixed_tables(rig: Rig, categories: Sequence[str], attributes: Sequence[str], numbered: bool = False) -> Tables:
    """The tables that are the same in every log of a rig, with these names of a data set.

    Args:
        numbered: the categories have numbers, which files of point classes refer to.
    """
    return {
        "category": [
            {"token": token("category", name), "name": name, "description": "", **({"index": n} if numbered else {})}
            for n, name in enumerate(categories)
        ],
        "attribute": [{"token": token("attribute", name), "name": name, "description": ""} for name in attributes],
        "visibility": [
            {"token": str(n + 1), "level": f"v{level}", "description": f"{level} % of the object is visible"}
            for n, level in enumerate(VISIBILITY_LEVELS)
        ],
        "sensor": [
            {"token": token("sensor", channel), "channel": channel, "modality": modality}
            for modality, names in (("lidar", rig.sensors.lidars), ("camera", rig.sensors.cameras))
            for channel in names
        ],
    }


def calibrated_sensors(scene: str, rig: Rig) -> list[Row]:
    """Rows of calibrated_sensor for the scene with this token."""
    sensors: tuple[RigSensor, ...] = (*rig.lidars, *rig.cameras)
    return [
        {
            "token": token("calibrated_sensor", scene, sensor.name),
            "sensor_token": token("sensor", sensor.name),
            "translation": sensor.ego_from_sensor[:3, 3].tolist(),
            "rotation": quaternion(sensor.ego_from_sensor[:3, :3]),
            "camera_intrinsic": sensor.intrinsics.tolist() if isinstance(sensor, RigCamera) else [],
        }
        for sensor in sensors
    ]


def link(rows: list[Row]) -> None:
    """Set prev and next of rows in order of time."""
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        row["next"] = following["token"] if following else ""
        row.setdefault("prev", "")
        if following:
            following["prev"] = row["token"]


def write_maps(out: Path, city: City) -> str:
    """Write the map expansion and the semantic prior of a city; return the prior's file name relative to `out`."""
    location = city.place.location
    (out / "maps" / "expansion").mkdir(parents=True, exist_ok=True)
    text = json.dumps(map_expansion(city), separators=(",", ":"))
    write_atomically(out / "maps" / "expansion" / f"{location}.json", text.encode())
    # 255 where vehicles drive or people walk, 0.1 m per pixel, north up.
    prior = np.where(city.ground.kinds == Ground.GRASS, 0, 255).astype(np.uint8)[::-1]
    name = f"maps/{token('map', location)}.png"
    write_atomically(out / name, cv2.imencode(".png", prior)[1].tobytes())
    return name


def write_tables(out: Path, tables: Tables, splits: dict[str, list[str]]) -> None:
    """Write the version folder atomically."""
    with atomic_folder(out / VERSION, "the tables") as folder:
        for name, rows in tables.items():
            (folder / f"{name}.json").write_text(json.dumps(rows, indent=0))
        (folder / "splits.json").write_text(json.dumps(splits, indent=1))
