"""A city: map polygons and lines in global metres, lane graph, ground raster and static objects."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import shapely
from shapely.geometry import LineString, MultiPolygon, Polygon, box
from shapely.ops import unary_union

from perception.simulate.ground import paint
from perception.simulate.lanes import LaneGraph, resample
from perception.simulate.parameters import Place
from perception.simulate.snapshot import GroundRaster, Solids
from perception.simulate.static_objects import build_static_objects
from perception.simulate.street_plan import (
    CROSSING_WIDTH,
    FRAME,
    FURNITURE,
    STOP_LINE_DEPTH,
    StreetPlan,
)

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
        for arm in range(4):
            if plan.neighbour(i, j, arm) is None:
                continue
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
        for arm in range(4):
            if plan.neighbour(i, j, arm) is None:
                continue
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
