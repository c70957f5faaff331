"""Unknown obstacles: things on the road that no detection class of nuScenes covers."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from perception.simulate.agents import RUBBER, Agent, Part, scale_part
from perception.simulate.snapshot import Ground
from perception.simulate.world import World

AHEAD = (8.0, 30.0)  # m along the vehicle's way, from where it is at a keyframe
SPACING = 12.0  # m of the way for one obstacle, on average
IN_THE_WAY = 0.5  # share of the obstacles; the others are beside it
WAY, BESIDE = 1.2, 7.0  # m, half the width of the way, and farthest from its middle
CLEARANCE = 0.4  # m to everything else
ATTEMPTS = 30  # places that are tried for one obstacle
EGO = np.array([1.25, 0.0, 3.0, 1.4])  # m: its middle ahead of and left of the rear axle, half its length and width


class Kind(NamedTuple):
    """A kind of obstacle; its size is drawn evenly between the smallest and the largest."""

    category: str  # of nuScenes, of no detection class
    smallest: tuple[float, float, float]  # m: width, length, height
    largest: tuple[float, float, float]
    parts: tuple[Part, ...]
    paints: tuple[tuple[int, int, int], ...]  # one of them is the colour "paint"


def _boards(*levels: float) -> tuple[Part, ...]:
    """Pallets on each other: boards on three skids."""
    parts: list[Part] = []
    for low, high in pairwise(levels):
        middle = low + 0.7 * (high - low)
        parts += [(-0.5, 0.5, y, y + 0.14, low, middle, "paint", 0.45, 0.0) for y in (-0.5, -0.07, 0.36)]
        parts.append((-0.5, 0.5, -0.5, 0.5, middle, high, "paint", 0.5, 0.0))
    return tuple(parts)


_WOOD = ((176, 142, 96), (150, 116, 78), (196, 168, 124))
_BARK, _LEAVES = (86, 66, 48), ((64, 92, 42), (92, 104, 48), (120, 96, 50))
KINDS = {
    "pallet": Kind("movable_object.debris", (0.8, 1.2, 0.29), (1.0, 1.3, 0.75), _boards(0, 0.25, 0.5, 0.75, 1), _WOOD),
    "tyre": Kind(
        "movable_object.debris",
        (0.2, 0.58, 0.58),
        (0.32, 0.95, 0.95),
        (  # upright, with a hole that the beams go through
            (-0.36, 0.36, -0.5, 0.5, 0.0, 0.2, "paint", 0.12, 0.0),
            (-0.36, 0.36, -0.5, 0.5, 0.8, 1.0, "paint", 0.12, 0.0),
            (-0.5, -0.28, -0.5, 0.5, 0.14, 0.86, "paint", 0.12, 0.0),
            (0.28, 0.5, -0.5, 0.5, 0.14, 0.86, "paint", 0.12, 0.0),
        ),
        (RUBBER, (40, 40, 42)),
    ),
    "box": Kind(
        "movable_object.debris",
        (0.35, 0.4, 0.3),
        (0.9, 1.1, 0.9),
        ((-0.5, 0.5, -0.5, 0.5, 0.0, 1.0, "paint", 0.6, 0.0),),
        ((182, 140, 92), (166, 124, 80), (222, 218, 208)),
    ),
    "branch": Kind(
        "movable_object.debris",
        (1.0, 2.0, 0.5),
        (1.8, 3.6, 1.0),
        (
            (-0.5, 0.5, -0.06, 0.06, 0.05, 0.3, _BARK, 0.3, 0.0),
            (-0.2, -0.12, -0.5, 0.3, 0.15, 0.4, _BARK, 0.3, 0.0),
            (0.1, 0.18, -0.2, 0.5, 0.15, 0.45, _BARK, 0.3, 0.0),
            (-0.4, 0.0, -0.5, -0.1, 0.25, 0.7, "paint", 0.5, 0.0),
            (0.0, 0.36, 0.05, 0.5, 0.2, 0.8, "paint", 0.5, 0.0),
            (0.2, 0.5, -0.35, 0.1, 0.3, 1.0, "paint", 0.5, 0.0),
        ),
        _LEAVES,
    ),
    "bin": Kind(
        "movable_object.pushable_pullable",
        (0.5, 0.55, 0.95),
        (0.75, 0.85, 1.15),
        (
            (-0.4, 0.4, -0.42, 0.42, 0.08, 0.9, "paint", 0.35, 0.0),
            (-0.5, 0.5, -0.5, 0.5, 0.9, 1.0, "paint", 0.3, 0.0),
            (-0.45, -0.2, -0.5, 0.5, 0.0, 0.16, RUBBER, 0.08, 0.0),
        ),
        ((52, 74, 58), (58, 62, 70), (40, 70, 120)),
    ),
    "dog": Kind(
        "animal",
        (0.24, 0.75, 0.5),
        (0.36, 1.15, 0.8),
        (
            (-0.38, 0.26, -0.42, 0.42, 0.46, 0.86, "paint", 0.4, 0.0),
            (0.2, 0.5, -0.32, 0.32, 0.66, 1.0, "paint", 0.4, 0.0),
            (-0.5, -0.36, -0.12, 0.12, 0.66, 0.94, "paint", 0.4, 0.0),
            *((x, x + 0.1, y, y + 0.26, 0.0, 0.48, "paint", 0.4, 0.0) for x in (-0.36, 0.14) for y in (-0.4, 0.14)),
        ),
        ((96, 72, 50), (36, 32, 30), (190, 164, 122), (128, 124, 120)),
    ),
}
CATEGORIES = tuple(dict.fromkeys(kind.category for kind in KINDS.values()))
_NAMES = tuple(KINDS)


def with_obstacles(world: World, keyframes: np.ndarray, rng: np.random.Generator) -> World:
    """The world with things on and beside the vehicle's way, away from agents and from where it is at the keyframes
    (s)."""
    way = _Way(world, keyframes)
    placed: list[Agent] = []
    for _ in range(max(3, round(way.length / SPACING))):
        kind = KINDS[_NAMES[int(rng.integers(len(_NAMES)))]]
        size = rng.uniform(kind.smallest, kind.largest).round(3)
        colours = {"paint": np.array(kind.paints[int(rng.integers(len(kind.paints)))])}
        parts = np.array([scale_part(part, size, colours, lit=False) for part in kind.parts])
        radius = float(np.hypot(*size[:2])) / 2
        for _ in range(ATTEMPTS):
            xy, yaw = way.draw(rng), float(rng.uniform(-np.pi, np.pi))
            if way.is_free(xy, radius) and all(_is_apart(xy, radius, other) for other in placed):
                placed.append(Agent(kind.category, size, "", parts, xy[None], np.array([yaw])))
                break
    return world.with_agents(placed) if placed else world


def _is_apart(xy: np.ndarray, radius: float, other: Agent) -> bool:
    gap = float(np.linalg.norm(xy - other.xy[0]) - np.hypot(*other.size[:2]) / 2)
    return gap > radius + CLEARANCE


class _Way:
    """The vehicle's way during the drive and straight on at its end, and what is on and beside it."""

    def __init__(self, world: World, keyframes: np.ndarray) -> None:
        driven = world.ego_xy[world.times >= 0]
        heading = np.array([np.cos(world.ego_yaw[-1]), np.sin(world.ego_yaw[-1])])
        self._path = np.concatenate([driven, driven[-1] + np.arange(1, int(AHEAD[1]) + 1)[:, None] * heading])
        steps = np.linalg.norm(np.diff(self._path, axis=0), axis=1)
        self._arc = np.concatenate([[0], np.cumsum(steps)])
        poses = np.stack([world.global_from_ego_at(float(time)) for time in keyframes])
        at_keyframes = np.interp(keyframes, world.times[world.times >= 0], self._arc[: len(driven)])
        self._starts, self.length = at_keyframes, float(at_keyframes[-1]) + AHEAD[1]
        middles = poses[:, :2, 3] + poses[:, :2, :2] @ EGO[:2]
        static = world.city.static_objects
        low = static.centers[:, 2] - static.sizes[:, 2] / 2 < 1.5
        low &= np.linalg.norm(static.centers[:, :2] - self._path[len(self._path) // 2], axis=1) < self._arc[-1] + 40
        agents = np.array([agent.size for agent in world.agents])[:, [1, 0]] / 2
        self._rectangles = np.concatenate(  # (N, 5) middle x y (m), yaw (rad), half length and width (m)
            [
                np.column_stack(
                    [middle.reshape(-1, 2), yaw.ravel(), np.broadcast_to(half, middle.shape).reshape(-1, 2)]
                )
                for middle, yaw, half in (
                    (middles, np.arctan2(poses[:, 1, 0], poses[:, 0, 0]), EGO[2:]),
                    (world.xy, world.yaw, agents),
                    (static.centers[low, :2], static.yaws[low], static.sizes[low, :2] / 2),
                )
            ]
        )
        self._ground = world.city.ground

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """(2,) m, a place ahead of the vehicle at a keyframe."""
        at = float(rng.choice(self._starts)) + float(rng.uniform(*AHEAD))
        in_the_way = rng.random() < IN_THE_WAY
        left = float(rng.uniform(-WAY, WAY) if in_the_way else rng.choice((-1, 1)) * rng.uniform(WAY, BESIDE))
        here, ahead = (np.array([np.interp(s, self._arc, self._path[:, k]) for k in (0, 1)]) for s in (at - 1.0, at))
        along = (ahead - here) / max(float(np.linalg.norm(ahead - here)), 1e-9)
        return np.asarray(ahead + left * np.array([-along[1], along[0]]))

    def is_free(self, xy: np.ndarray, radius: float) -> bool:
        """Whether there is a paved and empty circle."""
        rim = np.linspace(0, 2 * np.pi, 8, endpoint=False)
        circle = np.concatenate([xy[None], xy + radius * np.stack([np.cos(rim), np.sin(rim)], axis=1)])
        if (self._ground.at(circle) == Ground.GRASS).any():
            return False
        near = self._rectangles[np.abs(self._rectangles[:, :2] - xy).max(axis=1) < 20]
        offset, cos, sin = xy - near[:, :2], np.cos(near[:, 2]), np.sin(near[:, 2])
        local = np.stack([cos * offset[:, 0] + sin * offset[:, 1], cos * offset[:, 1] - sin * offset[:, 0]], axis=1)
        gaps = np.linalg.norm((np.abs(local) - near[:, 3:]).clip(0), axis=1)
        return bool((gaps > radius + CLEARANCE).all())
