"""Vector maps of the nuScenes map expansion, rasterized on the BEV grid as labels."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from perception.errors import InputError
from perception.frame import Frame
from perception.grid import BevGrid
from perception.taxonomy import MapLayer


@dataclass(frozen=True)
class Edges:
    """Edges of the polygons of one map layer: outer outlines counter-clockwise, holes clockwise."""

    starts: np.ndarray  # (E, 2) m, global
    ends: np.ndarray  # (E, 2) m, global
    polygon: np.ndarray  # (E,) index of the polygon
    low: np.ndarray  # (P, 2) m, bounds of each polygon
    high: np.ndarray  # (P, 2) m

    @staticmethod
    def of(polygons: Iterable[tuple[np.ndarray, list[np.ndarray]]]) -> Edges:
        """Edges of polygons: outer outline (N, 2) and outlines of holes, each without a repeated last point."""
        starts, ends, index, low, high = [], [], [], [], []
        for i, (outer, holes) in enumerate(polygons):
            for ring, orientation in [(outer, 1), *((hole, -1) for hole in holes)]:
                oriented = ring if orientation * _area(ring) > 0 else ring[::-1]
                starts.append(oriented)
                ends.append(np.roll(oriented, -1, axis=0))
                index.append(np.full(len(ring), i))
            low.append(outer.min(axis=0))
            high.append(outer.max(axis=0))
        if not starts:
            nothing = np.zeros((0, 2))
            return Edges(nothing, nothing, np.zeros(0, np.int64), nothing, nothing)
        return Edges(np.concatenate(starts), np.concatenate(ends), np.concatenate(index), np.array(low), np.array(high))


@dataclass(frozen=True)
class Lines:
    """The lines of one map layer."""

    nodes: tuple[np.ndarray, ...]  # L lines, each (N, 2) m, global
    low: np.ndarray  # (L, 2) m, bounds of each line
    high: np.ndarray  # (L, 2) m

    @staticmethod
    def of(lines: Iterable[np.ndarray]) -> Lines:
        nodes = tuple(line for line in lines if len(line))
        low, high = (np.array([edge(line, axis=0) for line in nodes]).reshape(-1, 2) for edge in (np.min, np.max))
        return Lines(nodes, low, high)


@dataclass(frozen=True)
class MapExpansion:
    """The map of one location, in the global frame, by layer."""

    layers: Mapping[str, Edges | Lines]
    loaded: tuple[Path, str, tuple[MapLayer, ...]] | None = None  # the arguments of `load`

    def __reduce__(self) -> tuple[Any, ...]:
        """Frames that go to another process take only the name of their map along; it loads the map once."""
        return (MapExpansion, (self.layers,)) if self.loaded is None else (MapExpansion.load, self.loaded)

    @staticmethod
    def load(dataroot: Path, location: str, layers: tuple[MapLayer, ...]) -> MapExpansion | None:
        """The map of a location, which a process parses once; None if the dataroot has none."""
        path = Path(dataroot) / "maps" / "expansion" / f"{location}.json"
        if not path.exists():
            return None
        return MapExpansion(_layers(path, path.stat().st_mtime_ns, layers), (dataroot, location, layers))

    def rasterize(self, frame: Frame, grid: BevGrid) -> np.ndarray:
        """(layers, rows, columns) uint8: 1 where the layer covers the cell's centre.

        Lines have a thickness of 2 cells, as in the devkit. The map is flat, at the height of the vehicle. The map of
        an augmented frame is augmented as well.
        """
        cells_from_global = _cells_from_global(frame, grid)
        low, high = _bounds(cells_from_global, grid)

        def mask(layer: Edges | Lines) -> np.ndarray:
            if isinstance(layer, Edges):
                return _fill(layer, cells_from_global, low, high, grid.shape)
            inside = np.flatnonzero(((layer.high >= low) & (layer.low <= high)).all(axis=1))
            return _draw([layer.nodes[i] for i in inside], cells_from_global, grid.shape)

        return np.stack([mask(layer) for layer in self.layers.values()])


@lru_cache(maxsize=16)
def _layers(path: Path, changed: int, layers: tuple[MapLayer, ...]) -> dict[str, Edges | Lines]:
    """What is in a file, by layer; `changed` is its time of change, so that another content is read again."""
    try:
        return _parse(json.loads(path.read_text(encoding="utf-8")), layers)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(f"{error.__class__.__name__}: {error}".split())
        raise InputError(f"{path}: not a map of the nuScenes map expansion ({reason}); copy it again") from None


def _parse(content: Mapping[str, Any], layers: Sequence[MapLayer]) -> dict[str, Edges | Lines]:
    nodes = {node["token"]: (node["x"], node["y"]) for node in content["node"]}
    polygons = {polygon["token"]: polygon for polygon in content["polygon"]}
    lines = {line["token"]: line["node_tokens"] for line in content["line"]}

    def ring(tokens: list[str]) -> np.ndarray:
        return np.array([nodes[token] for token in tokens], np.float64).reshape(-1, 2)

    def outlines(record: Mapping[str, Any]) -> Iterable[tuple[np.ndarray, list[np.ndarray]]]:
        for token in record.get("polygon_tokens") or [record["polygon_token"]]:
            polygon = polygons[token]
            if polygon["exterior_node_tokens"]:
                holes = [ring(hole["node_tokens"]) for hole in polygon["holes"] if hole["node_tokens"]]
                yield ring(polygon["exterior_node_tokens"]), holes

    def parsed(layer: MapLayer) -> Edges | Lines:
        records = [record for name in layer.records or (layer.name,) for record in content[name]]
        if layer.line:
            return Lines.of(ring(lines[record["line_token"]]) for record in records)
        return Edges.of(outline for record in records for outline in outlines(record))

    return {layer.name: parsed(layer) for layer in layers}


def _area(ring: np.ndarray) -> float:
    """Signed area of an outline (N, 2); positive if counter-clockwise."""
    x, y = (ring - ring[0]).T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def _cells_from_global(frame: Frame, grid: BevGrid) -> np.ndarray:
    """(2, 3) continuous column and row of a global point (x, y, 1) at the vehicle's height."""
    reference_from_global = np.linalg.inv(frame.global_from_reference)
    height = frame.global_from_ego[2, 3]
    affine = np.empty((2, 3))
    affine[:, :2] = reference_from_global[:2, :2]
    affine[:, 2] = reference_from_global[:2, 2] * height + reference_from_global[:2, 3]
    affine[:, 2] -= (grid.x[0], grid.y[0])
    return affine / grid.cell


def _bounds(cells_from_global: np.ndarray, grid: BevGrid) -> tuple[np.ndarray, np.ndarray]:
    """Global bounds of the grid, with a margin of two cells for the thickness of lines."""
    rows, columns = grid.shape
    corners = np.array([[c, r] for c in (-2, columns + 2) for r in (-2, rows + 2)]) - cells_from_global[:, 2]
    global_corners = corners @ np.linalg.inv(cells_from_global[:, :2]).T
    return global_corners.min(axis=0), global_corners.max(axis=0)


def _fill(
    edges: Edges, cells_from_global: np.ndarray, low: np.ndarray, high: np.ndarray, shape: tuple[int, int]
) -> np.ndarray:
    """(rows, columns) 1 where a polygon covers the cell's centre, by winding numbers.

    Along a row the winding number changes by one at each edge that crosses it, so it is a cumulative sum.
    """
    rows, columns = shape
    near = ((edges.high >= low) & (edges.low <= high)).all(axis=1)[edges.polygon]
    x0, y0 = _apply(cells_from_global, edges.starts[near]).T
    x1, y1 = _apply(cells_from_global, edges.ends[near]).T
    first = np.clip(np.ceil(np.minimum(y0, y1) - 0.5), 0, rows).astype(np.int64)
    end = np.clip(np.ceil(np.maximum(y0, y1) - 0.5), 0, rows).astype(np.int64)  # rows first..end-1 are crossed
    crossed = end - first
    edge = np.repeat(np.arange(len(crossed)), crossed)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(crossed) - crossed, crossed) + first[edge]
    x = x0[edge] + (row + 0.5 - y0[edge]) * ((x1 - x0)[edge] / (y1 - y0)[edge])
    column = np.clip(np.ceil(x - 0.5), 0, columns).astype(np.int64)
    direction = np.sign(y1 - y0)[edge]
    changes = np.bincount(row * (columns + 1) + column, direction, minlength=rows * (columns + 1))
    winding = np.cumsum(changes.reshape(rows, columns + 1), axis=1)[:, :columns]
    return (winding != 0).astype(np.uint8)


def _draw(lines: list[np.ndarray], cells_from_global: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(rows, columns) 1 along the lines between the cells of successive nodes."""
    mask = np.zeros(shape, np.uint8)
    nodes = [np.floor(_apply(cells_from_global, line)).astype(np.int32) for line in lines]
    cv2.polylines(mask, nodes, False, (1,), thickness=2)
    return mask


def _apply(affine: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ affine[:, :2].T + affine[:, 2]
