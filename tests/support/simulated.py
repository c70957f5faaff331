"""Courses and cars that are soon simulated, things to see made by hand, and hashes of what was written."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from shapely.geometry import Polygon
from vocabulary import NUSCENES, RIG

from perception.rig import Rig
from perception.simulate.conditions import Course, parse
from perception.simulate.snapshot import CATEGORIES, Ground, GroundRaster, Solids
from perception.simulate.worlds import Worlds

WORLDS = Worlds()  # that come with the package


def courses(*names: str) -> list[Course]:
    """Of drives such as clear-day-boston; all: of every combination."""
    return parse(names, NUSCENES, WORLDS)


def in_town(*names: str) -> list[Course]:
    """The same in three by three streets of these cities, which are soon built and written."""
    streets = {"columns": (1, 2, 1), "rows": (1, 2, 1)}
    return [
        replace(each, place=each.place.model_copy(update={"streets": each.place.streets.model_copy(update=streets)}))
        for each in courses(*names)
    ]


def with_pictures(edges: int, cameras: int = 6) -> Rig:
    """nuScenes' car with its LiDAR and some of its cameras, whose pictures have 1 / `edges` of the height and width."""
    small = []
    for each in RIG.cameras[:cameras]:
        lens = {name: tuple(x / edges for x in getattr(each.lens, name)) for name in ("focal", "center")}
        size = tuple(edge // edges for edge in each.size)
        small.append(each.model_copy(update={"size": size, "lens": each.lens.model_copy(update=lens)}))
    return RIG.model_copy(update={"cameras": tuple(small)})


# Pictures that are the left fifth of the real ones, from the sky to the ground: rendering takes most of a drive.
NARROW = RIG.model_copy(
    update={
        "cameras": tuple(each.model_copy(update={"size": (each.size[0] // 5, each.size[1])}) for each in RIG.cameras)
    }
)


def boxes(rows: Sequence[tuple], reflectance: float = 0.8, category: str = "static.manmade") -> Solids:
    """Solids from rows of x y z length width height yaw; each is an agent of its own."""
    table = np.array(rows, np.float64).reshape(-1, 7)
    n = len(table)
    return Solids(
        table[:, :3], table[:, 3:6], table[:, 6], np.full((n, 3), 200, np.uint8), np.full(n, reflectance), np.zeros(n),
        np.arange(n), np.full(n, CATEGORIES.index(category), np.uint8),
    )  # fmt: skip


def pave(kind: Ground = Ground.ROAD) -> GroundRaster:
    return GroundRaster(np.full((1, 1), kind, np.uint8), (-500.0, -500.0), 1000.0)


def outline(xy: np.ndarray, yaw: float, length: float, width: float) -> Polygon:
    """Of a box seen from above."""
    corners = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]]) * (length / 2, width / 2)
    return Polygon(corners @ [[np.cos(yaw), np.sin(yaw)], [-np.sin(yaw), np.cos(yaw)]] + xy)


def hashes(root: Path, pattern: str = "**/*") -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.glob(pattern))
        if path.is_file()
    }
