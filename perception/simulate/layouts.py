"""How data sets in nuScenes' schema differ in their files: what a simulated drive is written as."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from perception.frame import Conditions
from perception.simulate.agents import SIZES
from perception.simulate.categories import CATEGORIES
from perception.simulate.nuscenes_writer import Row
from perception.taxonomy import Taxonomy, load_taxonomy

_STEP = 0.02  # s, between the poses that motion is derived from
_PCD = """# .PCD v0.7 - Point Cloud Data file format
VERSION 0.7
FIELDS x y z intensity timestamp
SIZE 4 4 4 4 8
TYPE F F F F U
COUNT 1 1 1 1 1
WIDTH {count}
HEIGHT 1
VIEWPOINT 0 0 0 1 0 0 0
POINTS {count}
DATA binary
"""


@dataclass(frozen=True)
class Layout:
    """The files and tables of a data set."""

    categories: tuple[str, ...]
    attributes: tuple[str, ...]
    suffix: str  # of point clouds
    cloud: Callable[[np.ndarray, int], bytes]  # points (N, 5) x y z intensity ring, and their time (us) -> the file
    logs: bool  # drives have a log with a location, and that has a map
    motion: tuple[str, ...]  # tables of how the vehicle moves
    lidarseg: bool = False  # the classes of points are annotated; `categories` are in the order of their numbers


def layout_of(taxonomy: Taxonomy) -> Layout:
    """The layout that the taxonomy's devkit reads; nuScenes' without one."""
    return _LAYOUTS[taxonomy.devkit or "nuscenes"]()


def tags(conditions: Mapping[str, str | None], taxonomy: Taxonomy) -> list[str]:
    """Tags such as weather.rain for conditions of the simulator, one for each kind of the taxonomy that is known."""
    values = [value for value in conditions.values() if value is not None]
    values += [each for value in (*values, "always") for each in taxonomy.simulated.get(value, ())]
    known = {kind: [each for each in choices if each in values] for kind, choices in taxonomy.conditions.items()}
    return [f"{kind}.{found[0]}" for kind, found in known.items() if found]


def tagged_description(phases: list[tuple[float, Conditions]], taxonomy: Taxonomy) -> str:
    """The description of a drive whose phases start at these times, s."""
    (_, first), *changes = phases
    later = [f"; from {start:g} s: {','.join(tags(phase, taxonomy))}" for start, phase in changes]
    return ";".join(tags(first, taxonomy)) + "".join(later)


def motion_row(token: str, timestamp: int, pose_at: Callable[[float], np.ndarray], time: float) -> Row:
    """How the vehicle moves at a time (s), in its own frame: m/s, m/s^2, rad and rad/s, from differences of its poses.

    Args:
        pose_at: global_from_ego (4, 4) at a time.
    """
    before, here, after = (pose_at(time + k * _STEP) for k in (-1, 0, 1))
    across = here[:3, :3].T
    velocity = across @ (after[:3, 3] - before[:3, 3]) / (2 * _STEP)
    acceleration = across @ (after[:3, 3] - 2 * here[:3, 3] + before[:3, 3]) / _STEP**2
    rates = ((_angles(after) - _angles(before) + np.pi) % (2 * np.pi) - np.pi) / (2 * _STEP)
    return {
        "token": token,
        "timestamp": timestamp,
        **dict(zip(("vx", "vy", "vz"), velocity.tolist(), strict=True)),
        **dict(zip(("ax", "ay", "az"), acceleration.tolist(), strict=True)),
        **dict(zip(("yaw", "pitch", "roll"), _angles(here).tolist(), strict=True)),
        **dict(zip(("yaw_rate", "pitch_rate", "roll_rate"), rates.tolist(), strict=True)),
    }


def _angles(pose: np.ndarray) -> np.ndarray:
    """(3,) yaw, pitch and roll of a pose (4, 4), rad."""
    return np.array(
        [np.arctan2(pose[1, 0], pose[0, 0]), np.arcsin(np.clip(-pose[2, 0], -1, 1)), np.arctan2(pose[2, 1], pose[2, 2])]
    )


def _pcd(points: np.ndarray, timestamp: int) -> bytes:
    table = np.empty(len(points), [(name, "<f4") for name in ("x", "y", "z", "intensity")] + [("timestamp", "<u8")])
    for column, name in enumerate(("x", "y", "z", "intensity")):
        table[name] = points[:, column]
    table["timestamp"] = timestamp
    return _PCD.format(count=len(points)).encode() + table.tobytes()


def _nuscenes() -> Layout:
    """Caesar et al., 2020, with nuScenes-lidarseg."""
    attributes = load_taxonomy("nuscenes").attributes
    return Layout(CATEGORIES, attributes, "pcd.bin", lambda points, _: points.tobytes(), True, (), lidarseg=True)


def _truckscenes() -> Layout:
    """Fent et al., 2024: docs/schema_truckscenes.md of its devkit."""
    taxonomy, motion = load_taxonomy("truckscenes"), ("ego_motion_cabin", "ego_motion_chassis")
    categories = tuple(dict.fromkeys((*SIZES, *taxonomy.labels_of_categories())))
    return Layout(categories, taxonomy.attributes, "pcd", _pcd, logs=False, motion=motion)


_LAYOUTS = {"nuscenes": _nuscenes, "truckscenes": _truckscenes}
