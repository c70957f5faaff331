"""Static objects beside the road: houses, trees, lamps and signal posts, and the free spots between them."""

from __future__ import annotations

import numpy as np
from shapely.geometry import Polygon, box

from perception.simulate.snapshot import MANMADE, VEGETATION, Solids
from perception.simulate.streets import DIRECTIONS, FURNITURE, StreetPlan
from perception.simulate.worlds import Place
from perception.taxonomy import rgb

LAMP_SPACING = 26.0  # m between street lamps
SPOT_LENGTH = 2.6  # m of kerb for a tree, a lamp or a free spot


class _SolidsBuilder:
    def __init__(self, place: Place, plan: StreetPlan) -> None:
        self.place, self.plan = place, plan
        self.facades, self.leaves = (
            np.array([rgb(colour) for colour in colours])
            for colours in (place.buildings.facades, place.vegetation.leaves)
        )
        self.rows: list[tuple[float, ...]] = []

    def add(
        self,
        uv: np.ndarray,
        direction: np.ndarray,
        base: float,
        size: tuple[float, float, float],
        colour: np.ndarray,
        reflectance: float,
        lamp: float = 0.0,
        category: int = MANMADE,
    ) -> None:
        x, y = self.plan.to_global(uv)
        yaw = float(self.plan.heading(uv, direction))
        self.rows.append((x, y, base + size[2] / 2, *size, yaw, *colour, reflectance, lamp, category))

    def solids(self) -> Solids:
        table = np.array(self.rows)
        return Solids(
            centers=table[:, 0:3],
            sizes=table[:, 3:6],
            yaws=table[:, 6],
            colours=table[:, 7:10].clip(0, 255).astype(np.uint8),
            reflectances=table[:, 10],
            lamps=table[:, 11],
            owners=np.full(len(table), -1),
            categories=table[:, 12].astype(np.uint8),
        )


def build_static_objects(
    place: Place, plan: StreetPlan, lots: list[Polygon], rng: np.random.Generator
) -> tuple[Solids, list[tuple[np.ndarray, float]]]:
    """The static solids of a city, and the free spots on its furniture strips: plan point (2,) and plan heading of the
    kerb (rad)."""
    builder, spots = _SolidsBuilder(place, plan), []
    for block in plan.blocks():
        _houses(builder, np.array(block.bounds), lots, rng)
    _outskirts(builder, rng)
    for i, j, arm, side in plan.kerb_sides():
        spots += _street_furniture(builder, lots, (i, j, arm, side), rng)
    for i, j in plan.junctions():
        _signals(builder, i, j)
    return builder.solids(), spots


def _house(
    builder: _SolidsBuilder, uv: np.ndarray, along: np.ndarray, length: float, depth: float, rng: np.random.Generator
) -> None:
    low, high = builder.place.buildings.heights
    height = float(rng.uniform(low, high) if rng.random() < 0.7 else rng.uniform(low, low * 1.4))
    wall = builder.facades[rng.integers(len(builder.facades))] * rng.uniform(0.85, 1.1)
    builder.add(uv, along, 0.0, (length, depth, height), wall, float(rng.uniform(0.25, 0.5)))
    glass, lit = np.array([62, 74, 88]), float(rng.uniform(0.15, 0.55))
    for floor in range(1 if rng.random() < 0.7 else 2):  # a band of windows on the lower floors
        band = (length * 0.92, depth + 0.16, 1.5)
        if 1.1 + 3.4 * floor + 1.5 < height:
            builder.add(uv, along, 1.1 + 3.4 * floor, band, glass, 0.1, lit)


def _houses(builder: _SolidsBuilder, bounds: np.ndarray, lots: list[Polygon], rng: np.random.Generator) -> None:
    """A row of houses along each side of a block."""
    style = builder.plan.style
    back = style.verge + style.walkway + style.setback
    u0, v0, u1, v1 = bounds + np.array([back, back, -back, -back])
    sides = [
        (np.array([u0, v0]), np.array([1.0, 0.0]), np.array([0.0, 1.0]), u1 - u0),
        (np.array([u1, v1]), np.array([-1.0, 0.0]), np.array([0.0, -1.0]), u1 - u0),
        (np.array([u0, v1]), np.array([0.0, -1.0]), np.array([1.0, 0.0]), v1 - v0),
        (np.array([u1, v0]), np.array([0.0, 1.0]), np.array([-1.0, 0.0]), v1 - v0),
    ]
    occupied = [lot.buffer(1.0) for lot in lots]
    for corner, along, inwards, span in sides:
        at = 0.0
        while at < span - 8.0:
            length, depth = min(float(rng.uniform(9, 22)), span - at), float(rng.uniform(9, 14))
            setback = float(rng.uniform(0, 1.5))
            middle = corner + (at + length / 2) * along + (setback + depth / 2) * inwards
            half = np.abs(along) * length / 2 + np.abs(inwards) * depth / 2
            plot = box(*(middle - half), *(middle + half))
            if not any(plot.intersects(other) for other in occupied):
                occupied.append(plot.buffer(-0.2))
                _house(builder, middle, along, length - 0.4, depth, rng)
            elif rng.random() < 0.5:
                spot = corner + (at + 2.0) * along + 2.0 * inwards
                if not any(box(*(spot - 1.5), *(spot + 1.5)).intersects(other) for other in occupied):
                    _tree(builder, spot, rng)
            at += length + (float(rng.uniform(3, 9)) if rng.random() < 0.35 else 0.3)


def _outskirts(builder: _SolidsBuilder, rng: np.random.Generator) -> None:
    style = builder.plan.style
    u0, v0, u1, v1 = builder.plan.street_rectangle.bounds
    back = style.verge + style.walkway + style.setback + 1.0
    for start, along, outwards in (
        (np.array([u0, v0]), np.array([1.0, 0.0]), np.array([0.0, -1.0])),
        (np.array([u0, v1]), np.array([1.0, 0.0]), np.array([0.0, 1.0])),
        (np.array([u0, v0]), np.array([0.0, 1.0]), np.array([-1.0, 0.0])),
        (np.array([u1, v0]), np.array([0.0, 1.0]), np.array([1.0, 0.0])),
    ):
        span = u1 - u0 if along[0] else v1 - v0
        at = 0.0
        while at < span - 10.0:
            length = float(rng.uniform(10, 24))
            uv = start + (at + length / 2) * along + (back + 6.0) * outwards
            if rng.random() < 0.6:
                _house(builder, uv, along, length - 0.5, 11.0, rng)
            else:
                _tree(builder, uv, rng)
            at += length


def _tree(builder: _SolidsBuilder, uv: np.ndarray, rng: np.random.Generator) -> None:
    height = builder.place.vegetation.height * float(rng.uniform(0.7, 1.3))
    along, leaf = np.array([1.0, 0.0]), builder.leaves[rng.integers(len(builder.leaves))] * rng.uniform(0.85, 1.15)
    trunk, crown = height * 0.42, height * 0.32
    builder.add(uv, along, 0.0, (0.35, 0.35, trunk + 0.4), np.array([88, 68, 50]), 0.3, category=VEGETATION)
    builder.add(uv, along, trunk, (2 * crown, 2 * crown, height * 0.35), leaf, 0.5, category=VEGETATION)
    top = (1.3 * crown, 1.3 * crown, height * 0.23)
    builder.add(uv, along, trunk + height * 0.35, top, leaf * 1.08, 0.5, category=VEGETATION)


def _street_furniture(
    builder: _SolidsBuilder, lots: list[Polygon], kerb: tuple[int, int, int, float], rng: np.random.Generator
) -> list[tuple[np.ndarray, float]]:
    """Add trees and lamps along a stretch of kerb; returns the free spots as `build_static_objects` does."""
    plan, (i, j, arm, side) = builder.plan, kerb
    start, end = plan.stretch(i, j, arm)
    tree, lamp = float(rng.uniform(3, builder.place.vegetation.gap)), float(rng.uniform(2, LAMP_SPACING))
    left = side * (plan.half_width(i, j, arm) + plan.style.verge + FURNITURE / 2)
    direction, spots = DIRECTIONS[arm].astype(float), []
    for at in np.arange(start + SPOT_LENGTH, end - SPOT_LENGTH, SPOT_LENGTH):
        uv = plan.on_arm(i, j, arm, np.array(at), np.array(left))
        if any(box(*(uv - SPOT_LENGTH), *(uv + SPOT_LENGTH)).intersects(lot) for lot in lots):
            continue
        if at - start >= tree:
            tree += builder.place.vegetation.gap
            _tree(builder, uv, rng)
        elif at - start >= lamp:
            lamp += LAMP_SPACING
            _lamp(builder, uv, direction, side)
        else:
            spots.append((uv, float(np.arctan2(direction[1], direction[0]))))
    return spots


def _lamp(builder: _SolidsBuilder, uv: np.ndarray, direction: np.ndarray, side: float) -> None:
    grey, towards_road = np.array([96, 98, 100]), side * np.array([direction[1], -direction[0]])
    builder.add(uv, direction, 0.0, (0.18, 0.18, 7.2), grey, 0.4)
    builder.add(uv + 0.9 * towards_road, towards_road, 7.2, (2.0, 0.14, 0.14), grey, 0.4)
    builder.add(uv + 1.7 * towards_road, towards_road, 7.05, (0.7, 0.3, 0.15), np.array([236, 230, 210]), 0.3, 1.0)


def _signals(builder: _SolidsBuilder, i: int, j: int) -> None:
    plan = builder.plan
    for arm in plan.arms(i, j):
        side = 1.0 if plan.style.right_hand else -1.0
        left = side * (plan.half_width(i, j, arm) + plan.style.verge + FURNITURE / 2)
        at = np.array(plan.reach(i, j, arm) + 0.4)
        uv, outwards = plan.on_arm(i, j, arm, at, np.array(left)), DIRECTIONS[arm].astype(float)
        builder.add(uv, outwards, 0.0, (0.16, 0.16, 3.2), np.array([84, 86, 88]), 0.4)
        builder.add(uv, outwards, 3.0, (0.32, 0.34, 1.0), np.array([30, 30, 30]), 0.1, 0.15)
