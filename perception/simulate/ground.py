"""Rasterizing the map polygons and lines of a city into its ground raster."""

from __future__ import annotations

import cv2
import numpy as np
from shapely.geometry import LineString, Polygon

from perception.simulate.snapshot import Ground, GroundRaster
from perception.simulate.street_plan import StreetPlan

CELL = 0.1  # m
STRIPE = 0.5  # m, width of zebra stripes and of the gaps between them
LINE_WIDTH = 2  # cells
DASH = (3.0, 4.5)  # m: dash, gap
SHIFT = 4  # fractional bits of the coordinates given to OpenCV


def paint(plan: StreetPlan, polygons: dict[str, list[Polygon]], lines: dict[str, list[LineString]]) -> GroundRaster:
    """The ground of a city from the layers of its map, in global metres."""
    columns, rows = (round(edge / CELL) for edge in plan.canvas)
    kinds = np.full((rows, columns), Ground.GRASS, np.uint8)
    for layer, kind in (
        ("walkway", Ground.WALKWAY),
        ("carpark_area", Ground.CARPARK),
        ("drivable_area", Ground.ROAD),
    ):
        for polygon in polygons[layer]:
            _fill(kinds, polygon, kind)
    for polygon in polygons["stop_line"]:
        _fill(kinds, polygon, Ground.MARKING)
    for polygon in polygons["ped_crossing"]:
        for stripe in _zebra(polygon):
            _fill(kinds, stripe, Ground.CROSSING)
    for line in lines["road_divider"]:
        _stroke(kinds, np.array(line.coords), Ground.YELLOW if plan.style.yellow_divider else Ground.MARKING)
    for line in lines["lane_divider"]:
        start, end = np.array(line.coords)
        length = float(np.linalg.norm(end - start))
        for at in np.arange(0.0, length, sum(DASH)):
            ends = np.array([at, min(at + DASH[0], length)])[:, None] / length
            _stroke(kinds, start + ends * (end - start), Ground.MARKING)
    return GroundRaster(kinds, (0.0, 0.0), CELL)


def _cells(points: np.ndarray) -> np.ndarray:
    # OpenCV's integer coordinates are cell centres.
    return np.round((points / CELL - 0.5) * (1 << SHIFT)).astype(np.int32)


def _fill(kinds: np.ndarray, polygon: Polygon, kind: Ground) -> None:
    rings = [polygon.exterior, *polygon.interiors]
    cv2.fillPoly(kinds, [_cells(np.array(ring.coords)) for ring in rings], [int(kind)], shift=SHIFT)


def _stroke(kinds: np.ndarray, points: np.ndarray, kind: Ground) -> None:
    cv2.polylines(kinds, [_cells(points)], False, [int(kind)], LINE_WIDTH, shift=SHIFT)


def _zebra(crossing: Polygon) -> list[Polygon]:
    """Stripes along the driving direction, side by side across the road."""
    # The exterior starts at a corner of the near edge and runs to the far edge and back.
    ring = np.array(crossing.exterior.coords)[:-1]
    corners = ring[_corners(ring)]
    near, far = (corners[0], corners[3]), (corners[1], corners[2])
    count = max(1, round(float(np.linalg.norm(near[1] - near[0])) / (2 * STRIPE)))
    stripes = []
    for k in range(count):
        a, b = (k + 0.25) / count, (k + 0.75) / count
        at = [near[0] + a * (near[1] - near[0]), far[0] + a * (far[1] - far[0])]
        at += [far[0] + b * (far[1] - far[0]), near[0] + b * (near[1] - near[0])]
        stripes.append(Polygon(at))
    return stripes


def _corners(ring: np.ndarray) -> np.ndarray:
    """Indices of the four corners of a bent rectangle, in order: the vertices (N, 2) with the sharpest angles."""
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    sine = np.abs(before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0])
    sine = sine / np.linalg.norm(before, axis=1) / np.linalg.norm(after, axis=1)
    return np.sort(np.argsort(-sine)[:4])
