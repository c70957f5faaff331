"""Writes simulated drives in nuScenes' schema: tables, map expansion, and where data sets of this schema differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from shapely.geometry import LineString, Polygon

from perception.frame import Conditions
from perception.geometry import quaternion
from perception.io.files import atomic_folder, write_atomically
from perception.rig import Rig, RigCamera, RigSensor
from perception.simulate.agents import SIZES
from perception.simulate.city import City
from perception.simulate.snapshot import CATEGORIES, Ground
from perception.simulate.streets import Lane, resample
from perception.taxonomy import Taxonomy, load_taxonomy

PIECE = 4.0  # m, length of the straight pieces of a lane's centre line
STRAIGHT_RADIUS = 999.0  # m, as nuScenes writes it for straight arc-line paths
LANE_HALF_WIDTH = 1.6  # m, of the edge lines of a lane


class _GeometricLayers:
    """The layers node, line and polygon, filled while the other layers refer to them."""

    def __init__(self, city: str) -> None:
        self.city = city
        self.node: list[dict[str, Any]] = []
        self.line: list[dict[str, Any]] = []
        self.polygon: list[dict[str, Any]] = []

    def token(self, kind: str, number: int | str) -> str:
        return hashlib.md5(f"{self.city}/{kind}/{number}".encode()).hexdigest()

    def nodes(self, points: np.ndarray) -> list[str]:
        first = len(self.node)
        for x, y in points:
            self.node.append({"token": self.token("node", len(self.node)), "x": float(x), "y": float(y)})
        return [node["token"] for node in self.node[first:]]

    def add_line(self, points: np.ndarray) -> str:
        token = self.token("line", len(self.line))
        self.line.append({"token": token, "node_tokens": self.nodes(points)})
        return token

    def add_polygon(self, shape: Polygon) -> str:
        token = self.token("polygon", len(self.polygon))
        exterior = self.nodes(np.array(shape.exterior.coords)[:-1])
        holes = [{"node_tokens": self.nodes(np.array(ring.coords)[:-1])} for ring in shape.interiors]
        self.polygon.append({"token": token, "exterior_node_tokens": exterior, "holes": holes})
        return token


def map_expansion(city: City) -> dict[str, Any]:
    """The map of the city as the JSON object of `maps/expansion/<location>.json`."""
    tables, lanes = _GeometricLayers(city.place.name), city.graph.lanes
    layers: dict[str, list[dict[str, Any]]] = {}
    for layer, extra in (
        ("road_segment", {"is_intersection": False}),
        ("road_block", {"from_edge_line_token": "", "to_edge_line_token": "", "road_segment_token": ""}),
        ("ped_crossing", {"road_segment_token": ""}),
        ("walkway", {}),
        ("carpark_area", {"orientation": 0.0, "road_block_token": ""}),
        (
            "stop_line",
            {
                "stop_line_type": "TRAFFIC_LIGHT",
                "ped_crossing_tokens": [],
                "traffic_light_tokens": [],
                "road_block_token": "",
            },
        ),
    ):
        layers[layer] = [
            {"token": tables.token(layer, n), "polygon_token": tables.add_polygon(shape), **extra}
            for n, shape in enumerate(city.polygons[layer])
        ]
    for record in layers["road_segment"][-len(city.graph.junctions) :]:
        record["is_intersection"] = True
    drivable = [tables.add_polygon(shape) for shape in city.polygons["drivable_area"]]
    layers["drivable_area"] = [{"token": tables.token("drivable_area", 0), "polygon_tokens": drivable}]
    tokens = [tables.token("lane_connector" if lane.connector else "lane", n) for n, lane in enumerate(lanes)]
    roads = [n for n, lane in enumerate(lanes) if not lane.connector]
    connectors = [n for n, lane in enumerate(lanes) if lane.connector]
    layers["lane"] = [
        _lane_record(tables, tokens[n], lanes[n], shape) for n, shape in zip(roads, city.polygons["lane"], strict=True)
    ]
    layers["lane_connector"] = [
        {"token": tokens[n], "polygon_token": tables.add_polygon(shape), "lane_type": "CAR"}
        for n, shape in zip(connectors, city.polygons["lane_connector"], strict=True)
    ]
    for layer, owner in (("road_divider", "road_segment_token"), ("lane_divider", "lane_divider_segments")):
        layers[layer] = [_divider(tables, layer, n, owner, line) for n, line in enumerate(city.lines[layer])]
    incoming: dict[int, list[str]] = {n: [] for n in range(len(lanes))}
    for n, lane in enumerate(lanes):
        for successor in lane.successors:
            incoming[successor].append(tokens[n])
    return {
        "version": "1.3",
        "canvas_edge": list(city.plan.canvas),
        **layers,
        "traffic_light": [],
        "arcline_path_3": {tokens[n]: _arcline_path(lane) for n, lane in enumerate(lanes)},
        "connectivity": {
            tokens[n]: {"incoming": incoming[n], "outgoing": [tokens[k] for k in lane.successors]}
            for n, lane in enumerate(lanes)
        },
        "polygon": tables.polygon,
        "line": tables.line,
        "node": tables.node,
    }


def _lane_record(tables: _GeometricLayers, token: str, lane: Lane, shape: Polygon) -> dict[str, Any]:
    edges = []
    for end in (0, -1):
        ahead = lane.path[1] - lane.path[0] if end == 0 else lane.path[-1] - lane.path[-2]
        across = LANE_HALF_WIDTH * np.array([-ahead[1], ahead[0]]) / np.linalg.norm(ahead)
        edges.append(tables.add_line(np.stack([lane.path[end] + across, lane.path[end] - across])))
    return {
        "token": token,
        "polygon_token": tables.add_polygon(shape),
        "lane_type": "CAR",
        "from_edge_line_token": edges[0],
        "to_edge_line_token": edges[1],
        "left_lane_divider_segments": [],
        "right_lane_divider_segments": [],
    }


def _divider(tables: _GeometricLayers, layer: str, number: int, owner: str, line: LineString) -> dict[str, Any]:
    line_token = tables.add_line(np.array(line.coords))
    record: dict[str, Any] = {"token": tables.token(layer, number), "line_token": line_token}
    if owner == "road_segment_token":
        return {**record, "road_segment_token": ""}
    nodes = tables.line[-1]["node_tokens"]
    return {
        **record,
        "lane_divider_segments": [{"node_token": n, "segment_type": "SINGLE_ZIGZAG_WHITE"} for n in nodes],
    }


def _arcline_path(lane: Lane) -> list[dict[str, Any]]:
    points, _ = resample(lane.path, PIECE)
    pieces = []
    for start, end in pairwise(points):
        length = float(np.linalg.norm(end - start))
        yaw = float(np.arctan2(*(end - start)[::-1]))
        pieces.append(
            {
                "start_pose": [float(start[0]), float(start[1]), yaw],
                "end_pose": [float(end[0]), float(end[1]), yaw],
                "shape": "LSL",
                "radius": STRAIGHT_RADIUS,
                "segment_length": [0.0, length, 0.0],
            }
        )
    return pieces


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


def make_fixed_tables(rig: Rig, categories: Sequence[str], attributes: Sequence[str], numbered: bool = False) -> Tables:
    """The tables that every log of a rig has. Categories are `numbered` where files of point classes refer to them."""
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


def list_calibrated_sensors(scene: str, rig: Rig) -> list[Row]:
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


def describe_by_tags(phases: list[tuple[float, Conditions]], taxonomy: Taxonomy) -> str:
    """The description of a drive whose phases start at these times, s."""
    (_, first), *changes = phases
    later = [f"; from {start:g} s: {','.join(tags(phase, taxonomy))}" for start, phase in changes]
    return ";".join(tags(first, taxonomy)) + "".join(later)


def motion_row(token: str, timestamp: int, pose_at: Callable[[float], np.ndarray], time: float) -> Row:
    """The vehicle's motion at a time (s) in its own frame: m/s, m/s^2, rad and rad/s, by differences of its poses."""
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
