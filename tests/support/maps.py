"""Maps in the map expansion's format, and GeoJSON files of areas."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from vocabulary import NUSCENES

from perception.datasets.nuscenes.map_expansion import MapExpansion
from perception.tasks.map.task import MapMetric, count_thresholds

LAYERS = (
    *("polygon", "line", "node", "drivable_area", "road_segment", "road_block", "lane", "ped_crossing", "walkway"),
    *("stop_line", "carpark_area", "road_divider", "lane_divider", "traffic_light", "lane_connector"),
)
Place = tuple[float, float]


class MapWriter:
    def __init__(self) -> None:
        self.layers: dict[str, Any] = {layer: [] for layer in LAYERS}
        self.layers |= {"version": "1.3", "arcline_path_3": {}, "connectivity": {}}
        self.layers["canvas_edge"] = [600.0, 600.0]

    def nodes(self, places: list[Place]) -> list[str]:
        tokens = [f"node{len(self.layers['node']) + i}" for i in range(len(places))]
        self.layers["node"] += [{"token": t, "x": x, "y": y} for t, (x, y) in zip(tokens, places, strict=True)]
        return tokens

    def polygon(self, outer: list[Place], *holes: list[Place]) -> str:
        token = f"polygon{len(self.layers['polygon'])}"
        record: dict[str, Any] = {"token": token, "exterior_node_tokens": self.nodes(outer)}
        record["holes"] = [{"node_tokens": self.nodes(hole)} for hole in holes]
        self.layers["polygon"].append(record)
        return token

    def area(self, layer: str, *polygons: str) -> None:
        token = f"{layer}{len(self.layers[layer])}"
        if layer == "drivable_area":
            self.layers[layer].append({"token": token, "polygon_tokens": list(polygons)})
            return
        more = {"stop_line_type": "TURN_STOP", "ped_crossing_tokens": []} if layer == "stop_line" else {}
        self.layers[layer] += [{"token": f"{token}{each}", "polygon_token": each, **more} for each in polygons]

    def divider(self, layer: str, places: list[Place]) -> None:
        token = f"line{len(self.layers['line'])}"
        self.layers["line"].append({"token": token, "node_tokens": self.nodes(places)})
        self.layers[layer].append({"token": f"{layer}{token}", "line_token": token})

    def write(self, root: Path) -> MapExpansion:
        folder = root / "maps" / "expansion"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "boston-seaport.json").write_text(json.dumps(self.layers))
        return MapExpansion.load(root, "boston-seaport", NUSCENES.map_layers)


def box(west: float, south: float, east: float, north: float) -> list[list[float]]:
    return [[west, south], [east, south], [east, north], [west, north], [west, south]]


def feature(geometry: Any, **properties: Any) -> dict[str, Any]:
    return {"type": "Feature", "properties": properties, "geometry": geometry}


def polygon(*rings: list[list[float]]) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": list(rings)}


def write_map(folder: Path, *features: Any) -> Path:
    path = folder / "areas.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def map_iou(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Any:
    """`map` of the report of frames with these probabilities and cells of the map."""
    return MapMetric(NUSCENES).report([{"thresholds": count_thresholds(*pair)} for pair in pairs])["map"]
