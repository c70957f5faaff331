"""What stands beside the road: houses, trees, bushes, lamps and signal posts, and the free spots between them."""

from __future__ import annotations

import numpy as np
from shapely.geometry import Polygon, box

from perception.simulate.scenery import Solids
from perception.simulate.streets import DIRECTIONS, FURNITURE, Plan

LAMP_GAP = 26.0  # m between street lamps
SPOT = 2.6  # m along the kerb for each piece of street furniture
FACADES = np.array(
    [[168, 92, 72], [190, 178, 160], [140, 132, 126], [205, 198, 186], [120, 96, 82], [156, 164, 172], [222, 214, 204]]
)
LEAVES = np.array([[52, 92, 40], [64, 108, 48], [44, 80, 38], [78, 112, 50]])


class _Pile:
    """Solids being collected, from plan coordinates."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
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
    ) -> None:
        x, y = self.plan.to_global(uv)
        yaw = float(self.plan.heading(uv, direction))
        self.rows.append((x, y, base + size[2] / 2, *size, yaw, *colour, reflectance, lamp))

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
        )


def surroundings(
    plan: Plan, lots: list[Polygon], rng: np.random.Generator
) -> tuple[Solids, list[tuple[np.ndarray, float]]]:
    """Solids of the city, and the free spots on the furniture strip: plan point (2,) and plan heading of the kerb."""
    pile, spots = _Pile(plan), []
    for block in plan.blocks():
        _houses(pile, np.array(block.bounds), lots, rng)
    _outskirts(pile, rng)
    for i, j, arm, side in plan.kerb_sides():
        spots += _furniture(pile, lots, (i, j, arm, side), rng)
    for i, j in plan.junctions():
        _signals(pile, i, j)
    return pile.solids(), spots


def _house(
    pile: _Pile, uv: np.ndarray, along: np.ndarray, length: float, depth: float, rng: np.random.Generator
) -> None:
    low, high = pile.plan.style.building_heights
    height = float(rng.uniform(low, high) if rng.random() < 0.7 else rng.uniform(low, low * 1.4))
    wall = FACADES[rng.integers(len(FACADES))] * rng.uniform(0.85, 1.1)
    pile.add(uv, along, 0.0, (length, depth, height), wall, float(rng.uniform(0.25, 0.5)))
    glass, lit = np.array([62, 74, 88]), float(rng.uniform(0.15, 0.55))
    for floor in range(1 if rng.random() < 0.7 else 2):  # a band of windows on the lower floors
        band = (length * 0.92, depth + 0.16, 1.5)
        if 1.1 + 3.4 * floor + 1.5 < height:
            pile.add(uv, along, 1.1 + 3.4 * floor, band, glass, 0.1, lit)


def _houses(pile: _Pile, bounds: np.ndarray, lots: list[Polygon], rng: np.random.Generator) -> None:
    """A row of houses along each side of a block."""
    style = pile.plan.style
    back = style.verge + style.walkway + style.setback
    u0, v0, u1, v1 = bounds + np.array([back, back, -back, -back])
    sides = [
        (np.array([u0, v0]), np.array([1.0, 0.0]), np.array([0.0, 1.0]), u1 - u0),
        (np.array([u1, v1]), np.array([-1.0, 0.0]), np.array([0.0, -1.0]), u1 - u0),
        (np.array([u0, v1]), np.array([0.0, -1.0]), np.array([1.0, 0.0]), v1 - v0),
        (np.array([u1, v0]), np.array([0.0, 1.0]), np.array([-1.0, 0.0]), v1 - v0),
    ]
    taken = [lot.buffer(1.0) for lot in lots]
    for corner, along, inwards, span in sides:
        at = 0.0
        while at < span - 8.0:
            length, depth = min(float(rng.uniform(9, 22)), span - at), float(rng.uniform(9, 14))
            setback = float(rng.uniform(0, 1.5))
            middle = corner + (at + length / 2) * along + (setback + depth / 2) * inwards
            half = np.abs(along) * length / 2 + np.abs(inwards) * depth / 2
            plot = box(*(middle - half), *(middle + half))
            if not any(plot.intersects(other) for other in taken):
                taken.append(plot.buffer(-0.2))
                _house(pile, middle, along, length - 0.4, depth, rng)
            elif rng.random() < 0.5:
                spot = corner + (at + 2.0) * along + 2.0 * inwards
                if not any(box(*(spot - 1.5), *(spot + 1.5)).intersects(other) for other in taken):
                    _tree(pile, spot, rng)
            at += length + (float(rng.uniform(3, 9)) if rng.random() < 0.35 else 0.3)


def _outskirts(pile: _Pile, rng: np.random.Generator) -> None:
    """Houses and trees beyond the outermost streets."""
    style = pile.plan.style
    u0, v0, u1, v1 = pile.plan.street_rectangle.bounds
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
                _house(pile, uv, along, length - 0.5, 11.0, rng)
            else:
                _tree(pile, uv, rng)
            at += length


def _tree(pile: _Pile, uv: np.ndarray, rng: np.random.Generator) -> None:
    height = pile.plan.style.tree_height * float(rng.uniform(0.7, 1.3))
    along, leaf = np.array([1.0, 0.0]), LEAVES[rng.integers(len(LEAVES))] * rng.uniform(0.85, 1.15)
    trunk, crown = height * 0.42, height * 0.32
    pile.add(uv, along, 0.0, (0.35, 0.35, trunk + 0.4), np.array([88, 68, 50]), 0.3)
    pile.add(uv, along, trunk, (2 * crown, 2 * crown, height * 0.35), leaf, 0.5)
    pile.add(uv, along, trunk + height * 0.35, (1.3 * crown, 1.3 * crown, height * 0.23), leaf * 1.08, 0.5)


def _furniture(
    pile: _Pile, lots: list[Polygon], kerb: tuple[int, int, int, float], rng: np.random.Generator
) -> list[tuple[np.ndarray, float]]:
    """Trees and lamps along one stretch of kerb; the spots that stay free are returned."""
    plan, (i, j, arm, side) = pile.plan, kerb
    start, end = plan.stretch(i, j, arm)
    tree, lamp = float(rng.uniform(3, plan.style.tree_gap)), float(rng.uniform(2, LAMP_GAP))
    left = side * (plan.half_width(i, j, arm) + plan.style.verge + FURNITURE / 2)
    direction, spots = DIRECTIONS[arm].astype(float), []
    for at in np.arange(start + SPOT, end - SPOT, SPOT):
        uv = plan.on_arm(i, j, arm, np.array(at), np.array(left))
        if any(box(*(uv - SPOT), *(uv + SPOT)).intersects(lot) for lot in lots):
            continue
        if at - start >= tree:
            tree += plan.style.tree_gap
            _tree(pile, uv, rng)
        elif at - start >= lamp:
            lamp += LAMP_GAP
            _lamp(pile, uv, direction, side)
        else:
            spots.append((uv, float(np.arctan2(direction[1], direction[0]))))
    return spots


def _lamp(pile: _Pile, uv: np.ndarray, direction: np.ndarray, side: float) -> None:
    grey, towards_road = np.array([96, 98, 100]), side * np.array([direction[1], -direction[0]])
    pile.add(uv, direction, 0.0, (0.18, 0.18, 7.2), grey, 0.4)
    pile.add(uv + 0.9 * towards_road, towards_road, 7.2, (2.0, 0.14, 0.14), grey, 0.4)
    pile.add(uv + 1.7 * towards_road, towards_road, 7.05, (0.7, 0.3, 0.15), np.array([236, 230, 210]), 0.3, 1.0)


def _signals(pile: _Pile, i: int, j: int) -> None:
    """A signal post beside each incoming stop line."""
    plan = pile.plan
    for arm in range(4):
        if plan.neighbour(i, j, arm) is None:
            continue
        side = 1.0 if plan.style.right_hand else -1.0
        left = side * (plan.half_width(i, j, arm) + plan.style.verge + FURNITURE / 2)
        at = np.array(plan.reach(i, j, arm) + 0.4)
        uv, outwards = plan.on_arm(i, j, arm, at, np.array(left)), DIRECTIONS[arm].astype(float)
        pile.add(uv, outwards, 0.0, (0.16, 0.16, 3.2), np.array([84, 86, 88]), 0.4)
        pile.add(uv, outwards, 3.0, (0.32, 0.34, 1.0), np.array([30, 30, 30]), 0.1, 0.15)
