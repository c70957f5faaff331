"""The map of a city as a nuScenes map expansion (version 1.3), the JSON that the devkit's NuScenesMap reads."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from typing import Any

import numpy as np
from shapely.geometry import LineString, Polygon

from perception.simulate.city import City
from perception.simulate.lanes import Lane, resample

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
    """The lane's centre line as straight Dubins pieces."""
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
