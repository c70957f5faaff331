"""Painting a city's ground from the very polygons and lines of its map."""

from __future__ import annotations

import cv2
import numpy as np
from shapely.geometry import LineString, Polygon

from perception.simulate.scenery import Ground, GroundRaster
from perception.simulate.streets import Plan

CELL = 0.1  # m
STRIPE = 0.5  # m, zebra stripes and the gaps between them
LINE = 2  # cells
DASH = (3.0, 4.5)  # m: painted, then free
SHIFT = 4  # bits of sub-cell precision that OpenCV takes


def paint(plan: Plan, polygons: dict[str, list[Polygon]], lines: dict[str, list[LineString]]) -> GroundRaster:
    """The ground of a city, seen from above."""
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
    # OpenCV's integer coordinates name the middle of a cell.
    return np.round((points / CELL - 0.5) * (1 << SHIFT)).astype(np.int32)


def _fill(kinds: np.ndarray, polygon: Polygon, kind: Ground) -> None:
    rings = [polygon.exterior, *polygon.interiors]
    cv2.fillPoly(kinds, [_cells(np.array(ring.coords)) for ring in rings], [int(kind)], shift=SHIFT)


def _stroke(kinds: np.ndarray, points: np.ndarray, kind: Ground) -> None:
    cv2.polylines(kinds, [_cells(points)], False, [int(kind)], LINE, shift=SHIFT)


def _zebra(crossing: Polygon) -> list[Polygon]:
    """Stripes along the direction of driving, side by side over the whole width of the road."""
    # The exterior starts with the near edge's ends: (along 0, left 0), then to the far edge, and back.
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
    """Indices of the four sharp corners of a bent rectangle, in order, starting with the first vertex."""
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    turn = np.abs(before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0])
    turn = turn / np.linalg.norm(before, axis=1) / np.linalg.norm(after, axis=1)
    return np.sort(np.argsort(-turn)[:4])
