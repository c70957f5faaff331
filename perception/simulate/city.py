"""A city: streets, lanes, blocks, static objects, and the painted ground."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import cv2
import numpy as np
import shapely
from shapely.geometry import LineString, MultiPolygon, Polygon, box
from shapely.ops import unary_union

from perception.simulate.snapshot import Ground, GroundRaster, Solids
from perception.simulate.static_objects import build_static_objects
from perception.simulate.streets import (
    CROSSING_WIDTH,
    FRAME,
    FURNITURE,
    STOP_LINE_DEPTH,
    LaneGraph,
    StreetPlan,
    resample,
)
from perception.simulate.worlds import Place

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


PARKING_SPACE = (2.6, 5.3)  # m: width and depth of a space in a parking lot
AISLE = 6.2  # m between the two rows of a parking lot


@dataclass(frozen=True)
class Lot:
    """A parking lot: two rows of spaces."""

    shape: Polygon  # with its driveway, plan coordinates
    spaces: np.ndarray  # (S, 3) u, v and heading (rad), plan coordinates


@dataclass(frozen=True)
class Crossing:
    """A pedestrian crossing on one arm of a junction."""

    junction: int
    arm: int
    ends: np.ndarray  # (2, 2) m, global: where people wait, on either side
    along: np.ndarray  # (2,) global unit vector along the street


@dataclass(frozen=True)
class City:
    """The static world of all drives in a city."""

    place: Place
    plan: StreetPlan
    graph: LaneGraph
    polygons: dict[str, list[Polygon]]  # layer of the map expansion -> global polygons
    lines: dict[str, list[LineString]]  # road_divider, lane_divider
    lots: list[Lot]
    crossings: list[Crossing]
    walking_paths: list[list[tuple[np.ndarray, float]]]  # per block: closed paths (N, 2) m, global, and their lengths
    ground: GroundRaster
    static_objects: Solids
    free_spots: list[tuple[np.ndarray, float]]  # beside the kerb: plan point (2,), plan heading of the kerb (rad)


@lru_cache(maxsize=2)
def build_city(place: Place) -> City:
    """The city at this place; always the same, so that one map serves all drives."""
    plan = StreetPlan(place.streets)
    rng = np.random.default_rng(sum(map(ord, place.name)))
    graph = LaneGraph(plan)
    lots = _parking_lots(plan, rng)
    shapes = _plan_polygons(plan, graph, lots)
    polygons = {
        layer: [part for shape in found for part in _parts(plan.bend(shape))] for layer, found in shapes.items()
    }
    polygons["lane_connector"] = [
        LineString(lane.path).buffer(plan.style.lane_width / 2, cap_style="flat")
        for lane in graph.lanes
        if lane.connector
    ]
    lines = _dividers(plan)
    static_objects, free_spots = build_static_objects(place, plan, [lot.shape for lot in lots], rng)
    return City(
        place=place,
        plan=plan,
        graph=graph,
        polygons=polygons,
        lines=lines,
        lots=lots,
        crossings=_crossings(plan, graph),
        walking_paths=[_walking_paths(plan, block) for block in plan.blocks()],
        ground=paint(plan, polygons, lines),
        static_objects=static_objects,
        free_spots=free_spots,
    )


def _parts(shape: Polygon | MultiPolygon) -> list[Polygon]:
    return list(shape.geoms) if isinstance(shape, MultiPolygon) else [shape]


def _plan_polygons(plan: StreetPlan, graph: LaneGraph, lots: list[Lot]) -> dict[str, list[Polygon]]:
    """The polygon layers of the map in plan coordinates, except lane_connector."""
    style, blocks = plan.style, plan.blocks()
    road = plan.street_rectangle.difference(unary_union(blocks))
    outside = plan.street_rectangle.buffer(FRAME, join_style="mitre").difference(plan.street_rectangle)
    layers: dict[str, list[Polygon]] = {
        "drivable_area": _parts(road),
        "road_segment": [],
        "road_block": [],
        "lane": [],
        "ped_crossing": [],
        "stop_line": [],
        "carpark_area": [lot.shape for lot in lots],
    }
    ramps, junctions = [], []
    for i, j in plan.junctions():
        reaches = []
        for arm in plan.arms(i, j):
            half, start = plan.half_width(i, j, arm), plan.crossing_start(i, j, arm)
            lanes = plan.lanes(i, j, arm) * style.lane_width
            incoming = (0.0, lanes) if style.right_hand else (-lanes, 0.0)
            line = start + CROSSING_WIDTH + 1.0
            zebra = (start, start + CROSSING_WIDTH)
            layers["ped_crossing"].append(plan.rectangle(i, j, arm, zebra, (-half, half)))
            layers["stop_line"].append(plan.rectangle(i, j, arm, (line, line + STOP_LINE_DEPTH), incoming))
            ramps.append(plan.rectangle(i, j, arm, zebra, (-half - style.verge, half + style.verge)))
            reaches.append(plan.rectangle(i, j, arm, (0.0, plan.reach(i, j, arm)), (-half, half)))
            stretch = plan.stretch(i, j, arm)
            outgoing = (-half, 0.0) if style.right_hand else (0.0, half)
            layers["road_block"].append(plan.rectangle(i, j, arm, stretch, outgoing))
            if arm < 2:
                layers["road_segment"].append(plan.rectangle(i, j, arm, stretch, (-half, half)))
            for k in range(plan.lanes(i, j, arm)):
                # Outgoing lanes: their direction of travel is that of the arm, so `offset` has the sign of `rectangle`.
                middle = graph.offset(plan.lanes(i, j, arm), k)
                edges = (middle - style.lane_width / 2, middle + style.lane_width / 2)
                layers["lane"].append(plan.rectangle(i, j, arm, stretch, edges))
        junctions.append(unary_union(reaches).buffer(6.0).buffer(-6.0).intersection(road))
    layers["road_segment"] += junctions  # streets first, then one for each junction
    inset, outset = style.verge, style.verge + style.walkway
    rings = [block.buffer(-inset).difference(block.buffer(-outset)) for block in blocks]
    rim = plan.street_rectangle
    rings.append(rim.buffer(outset, join_style="mitre").difference(rim.buffer(inset, join_style="mitre")))
    ramp = unary_union(ramps).difference(road)
    driveways = unary_union([lot.shape for lot in lots])
    land = [*blocks, outside]
    layers["walkway"] = [
        part
        for ring, ground in zip(rings, land, strict=True)
        for part in _parts(ring.union(ramp.intersection(ground)).difference(driveways))
    ]
    return layers


def _parking_lots(plan: StreetPlan, rng: np.random.Generator) -> list[Lot]:
    """Parking lots behind the walkway on the low-v side of some blocks, reached over a driveway."""
    lots = []
    set_back = plan.style.verge + plan.style.walkway
    for block in plan.blocks():
        u0, v0, u1, _ = block.bounds
        columns = int(min(13, (u1 - u0 - 2 * set_back - 14.0) // PARKING_SPACE[0]))
        if rng.random() > plan.style.carparks:
            continue
        left, bottom = (u0 + u1 - columns * PARKING_SPACE[0]) / 2, v0 + set_back + 0.5
        across = 2 * PARKING_SPACE[1] + AISLE
        # The driveway takes the place of two spaces in the row next to the street.
        gate = int(rng.integers(2, columns - 3))
        driveway = box(left + gate * PARKING_SPACE[0], v0, left + (gate + 2) * PARKING_SPACE[0], bottom + 1.0)
        ground = box(left, bottom, left + columns * PARKING_SPACE[0], bottom + across)
        spaces = []
        for k in range(columns):
            u = left + (k + 0.5) * PARKING_SPACE[0]
            if not gate <= k < gate + 2:
                spaces.append((u, bottom + PARKING_SPACE[1] / 2, np.pi / 2))
            spaces.append((u, bottom + across - PARKING_SPACE[1] / 2, -np.pi / 2))
        lots.append(Lot(ground.union(driveway), np.array(spaces)))
    return lots


def _dividers(plan: StreetPlan) -> dict[str, list[LineString]]:
    """Dividers in straight pieces: the devkit cannot draw a bent line that leaves and re-enters its patch."""
    lines: dict[str, list[LineString]] = {"road_divider": [], "lane_divider": []}
    for i, j in plan.junctions():
        for arm in (0, 1):
            if plan.neighbour(i, j, arm) is None:
                continue
            start, end = plan.stretch(i, j, arm)
            along = np.linspace(start, end, 9)
            lanes = plan.lanes(i, j, arm)
            for k in range(-lanes + 1, lanes):
                left = np.full(len(along), k * plan.style.lane_width)
                points = plan.to_global(plan.on_arm(i, j, arm, along, left))
                name = "road_divider" if k == 0 else "lane_divider"
                lines[name] += [LineString(pair) for pair in pairwise(points)]
    return lines


def _crossings(plan: StreetPlan, graph: LaneGraph) -> list[Crossing]:
    crossings = []
    for junction, (i, j) in enumerate(graph.junctions):
        for arm in plan.arms(i, j):
            middle = plan.crossing_start(i, j, arm) + CROSSING_WIDTH / 2
            side = plan.half_width(i, j, arm) + plan.style.verge + FURNITURE / 2
            ends = plan.on_arm(i, j, arm, np.full(2, middle), np.array([-side, side]))
            step = plan.to_global(plan.on_arm(i, j, arm, np.array([middle - 1, middle + 1]), np.array(0.0)))
            along = (step[1] - step[0]) / np.linalg.norm(step[1] - step[0])
            crossings.append(Crossing(junction, arm, plan.to_global(ends), along))
    return crossings


def _walking_paths(plan: StreetPlan, block: Polygon) -> list[tuple[np.ndarray, float]]:
    """Closed walking paths around a block with their lengths (m), 0.95 m apart, clear of the furniture strip."""
    first = plan.style.verge + FURNITURE + 0.5
    last = plan.style.verge + plan.style.walkway - 0.4
    paths = []
    for inset in np.arange(first, last, 0.95):
        ring = shapely.segmentize(block.buffer(-inset).exterior, 1.0)
        paths.append(resample(plan.to_global(np.array(ring.coords)), 1.0))
    return paths
