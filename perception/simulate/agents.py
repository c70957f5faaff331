"""Agents: the annotated objects, with their sizes, the boxes that they are built of, and their attributes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

# Mean width, length and height in metres, and their relative standard deviation; close to the classes of nuScenes.
SIZES: dict[str, tuple[tuple[float, float, float], float]] = {
    "vehicle.car": ((1.92, 4.6, 1.68), 0.05),
    "vehicle.truck": ((2.4, 7.0, 2.9), 0.05),
    "vehicle.bus.rigid": ((2.75, 10.8, 3.4), 0.02),
    "vehicle.trailer": ((2.45, 10.5, 3.6), 0.05),
    "vehicle.construction": ((2.3, 6.3, 3.1), 0.03),
    "vehicle.motorcycle": ((0.78, 2.1, 1.55), 0.06),
    "vehicle.bicycle": ((0.62, 1.75, 1.65), 0.06),
    "human.pedestrian.adult": ((0.66, 0.72, 1.74), 0.06),
    "human.pedestrian.child": ((0.5, 0.52, 1.2), 0.08),
    "human.pedestrian.construction_worker": ((0.7, 0.74, 1.78), 0.04),
    "movable_object.barrier": ((2.4, 0.5, 1.0), 0.04),
    "movable_object.trafficcone": ((0.4, 0.4, 0.95), 0.08),
}
RIDERLESS_HEIGHTS = {"vehicle.motorcycle": 1.15, "vehicle.bicycle": 1.05}  # m, height without a rider
MOVING = 0.2  # m/s, above which an agent has the attribute `moving`

PAINTS = np.array(
    [[228, 228, 226], [24, 24, 28], [122, 126, 130], [178, 182, 186], [150, 24, 28], [32, 58, 118], [70, 84, 62],
     [196, 160, 72]]
)  # fmt: skip
CLOTHES = np.array(
    [[36, 40, 58], [150, 40, 44], [60, 96, 150], [214, 206, 190], [92, 70, 54], [40, 104, 72], [210, 158, 48],
     [92, 92, 96]]
)  # fmt: skip
SKIN, GLASS, RUBBER, ORANGE = (206, 160, 130), (38, 46, 56), (22, 22, 22), (238, 104, 24)
WHITE_LAMP, RED_LAMP = (250, 246, 226), (190, 20, 20)

# A part: x0 x1 (along the heading, -0.5..0.5), y0 y1 (left positive, -0.5..0.5), z0 z1 (from the ground, 0..1), all
# relative to the agent's size; colour (RGB, or the agent's random "paint" or "cloth"), reflectance at 905 nm, lamp.
Colour = tuple[int, int, int] | str
Part = tuple[float, float, float, float, float, float, Colour, float, float]


def _lamps(low: float, high: float, front: float = 0.5) -> list[Part]:
    parts: list[Part] = []
    for y in (-0.45, 0.27):
        parts.append((front - 0.015, front, y, y + 0.18, low, high, WHITE_LAMP, 0.6, 1.0))
        parts.append((-0.5, -0.485, y, y + 0.18, low, high, RED_LAMP, 0.9, 0.6))
    return parts


def _axles(height: float, length: float, *at: float) -> list[Part]:
    return [
        (x - length / 2, x + length / 2, y, y + 0.13, 0.0, height, RUBBER, 0.05, 0.0) for x in at for y in (-0.5, 0.37)
    ]


BODIES: dict[str, list[Part]] = {
    "vehicle.car": [
        (-0.49, 0.49, -0.485, 0.485, 0.14, 0.56, "paint", 0.45, 0.0),
        (-0.36, 0.22, -0.43, 0.43, 0.56, 0.93, GLASS, 0.08, 0.0),
        (-0.32, 0.16, -0.42, 0.42, 0.93, 1.0, "paint", 0.45, 0.0),
        *_axles(0.38, 0.14, 0.31, -0.31),
        *_lamps(0.36, 0.48),
    ],
    "vehicle.truck": [
        (0.22, 0.49, -0.46, 0.46, 0.14, 0.8, "paint", 0.45, 0.0),
        (0.36, 0.495, -0.43, 0.43, 0.5, 0.74, GLASS, 0.08, 0.0),
        (-0.5, 0.19, -0.5, 0.5, 0.3, 1.0, "cloth", 0.6, 0.0),
        (-0.48, 0.22, -0.35, 0.35, 0.16, 0.3, RUBBER, 0.1, 0.0),
        *_axles(0.32, 0.13, 0.34, -0.2, -0.36),
        *_lamps(0.2, 0.28),
    ],
    "vehicle.bus.rigid": [
        (-0.495, 0.495, -0.49, 0.49, 0.1, 1.0, "paint", 0.5, 0.0),
        (-0.47, 0.46, -0.5, 0.5, 0.42, 0.8, GLASS, 0.08, 0.25),
        (0.49, 0.5, -0.45, 0.45, 0.4, 0.86, GLASS, 0.08, 0.1),
        *_axles(0.28, 0.09, 0.28, -0.26),
        *_lamps(0.16, 0.24),
    ],
    "vehicle.trailer": [
        (-0.5, 0.5, -0.5, 0.5, 0.32, 1.0, "paint", 0.6, 0.0),
        (-0.45, 0.4, -0.2, 0.2, 0.22, 0.32, RUBBER, 0.1, 0.0),
        *_axles(0.27, 0.09, -0.25, -0.36),
        *_lamps(0.24, 0.3, front=0.3)[1::2],
    ],
    "vehicle.construction": [
        (-0.4, 0.25, 0.26, 0.5, 0.0, 0.28, RUBBER, 0.1, 0.0),
        (-0.4, 0.25, -0.5, -0.26, 0.0, 0.28, RUBBER, 0.1, 0.0),
        (-0.5, 0.12, -0.46, 0.46, 0.28, 0.6, (226, 168, 20), 0.55, 0.0),
        (-0.1, 0.14, 0.04, 0.44, 0.6, 0.92, GLASS, 0.1, 0.0),
        (0.05, 0.34, -0.16, 0.02, 0.62, 1.0, (226, 168, 20), 0.55, 0.0),
        (0.3, 0.42, -0.15, 0.01, 0.2, 0.92, (226, 168, 20), 0.55, 0.0),
        (0.34, 0.5, -0.3, 0.16, 0.0, 0.26, (84, 80, 76), 0.3, 0.0),
    ],
    "vehicle.motorcycle": [
        (0.22, 0.5, -0.1, 0.1, 0.0, 0.5, RUBBER, 0.08, 0.0),
        (-0.5, -0.22, -0.12, 0.12, 0.0, 0.5, RUBBER, 0.08, 0.0),
        (-0.42, 0.3, -0.22, 0.22, 0.3, 0.72, "paint", 0.4, 0.0),
        (0.18, 0.3, -0.5, 0.5, 0.86, 1.0, RUBBER, 0.2, 0.0),
        (0.3, 0.36, -0.16, 0.16, 0.6, 0.78, WHITE_LAMP, 0.6, 1.0),
    ],
    "vehicle.bicycle": [
        (0.12, 0.5, -0.05, 0.05, 0.0, 0.64, RUBBER, 0.08, 0.0),
        (-0.5, -0.12, -0.05, 0.05, 0.0, 0.64, RUBBER, 0.08, 0.0),
        (-0.3, 0.32, -0.05, 0.05, 0.4, 0.76, "paint", 0.3, 0.0),
        (-0.22, -0.06, -0.14, 0.14, 0.8, 0.92, RUBBER, 0.2, 0.0),
        (0.2, 0.3, -0.5, 0.5, 0.9, 1.0, RUBBER, 0.2, 0.0),
    ],
    "human.pedestrian": [
        (-0.3, 0.06, -0.3, -0.04, 0.0, 0.48, "paint", 0.25, 0.0),
        (-0.06, 0.3, 0.04, 0.3, 0.0, 0.48, "paint", 0.25, 0.0),
        (-0.24, 0.24, -0.34, 0.34, 0.46, 0.84, "cloth", 0.4, 0.0),
        (-0.3, 0.16, -0.5, -0.34, 0.42, 0.8, "cloth", 0.4, 0.0),
        (-0.16, 0.3, 0.34, 0.5, 0.42, 0.8, "cloth", 0.4, 0.0),
        (-0.18, 0.2, -0.2, 0.2, 0.86, 1.0, SKIN, 0.4, 0.0),
    ],
    "movable_object.barrier": [
        (-0.5, 0.5, -0.5, 0.5, 0.0, 0.24, (200, 198, 192), 0.5, 0.0),
        (-0.26, 0.26, -0.5, -0.18, 0.24, 1.0, ORANGE, 0.7, 0.0),
        (-0.26, 0.26, -0.18, 0.18, 0.24, 1.0, (232, 232, 228), 0.9, 0.0),
        (-0.26, 0.26, 0.18, 0.5, 0.24, 1.0, ORANGE, 0.7, 0.0),
    ],
    "movable_object.trafficcone": [
        (-0.5, 0.5, -0.5, 0.5, 0.0, 0.08, (40, 40, 40), 0.2, 0.0),
        (-0.34, 0.34, -0.34, 0.34, 0.08, 0.4, ORANGE, 0.5, 0.0),
        (-0.25, 0.25, -0.25, 0.25, 0.4, 0.64, (238, 238, 234), 1.0, 0.0),
        (-0.16, 0.16, -0.16, 0.16, 0.64, 1.0, ORANGE, 0.5, 0.0),
    ],
}
RIDER: list[Part] = [
    (-0.2, 0.08, -0.34, 0.34, 0.54, 0.86, "cloth", 0.4, 0.0),
    (-0.1, 0.2, -0.34, -0.18, 0.2, 0.54, (44, 44, 60), 0.3, 0.0),
    (-0.1, 0.2, 0.18, 0.34, 0.2, 0.54, (44, 44, 60), 0.3, 0.0),
    (-0.1, 0.08, -0.17, 0.17, 0.86, 1.0, SKIN, 0.4, 0.0),
]


@dataclass(frozen=True)
class Agent:
    """One annotated object over the whole drive."""

    category: str  # of nuScenes, such as vehicle.bus.rigid
    size: np.ndarray  # (3,) m: width, length, height
    behaviour: str  # traffic, parked, ridden, riderless, walking, sitting; '' for movable objects
    parts: np.ndarray  # (P, 11): centre x y z (m, agent's frame, z from the ground), length width height (m), RGB,
    # reflectance, lamp
    xy: np.ndarray  # (T, 2) m, or (1, 2) if it never moves
    yaw: np.ndarray  # (T,) rad, unwrapped, or (1,)


def draw_size(category: str, rng: np.random.Generator, ridden: bool = True) -> np.ndarray:
    """(3,) random width, length, height (m) of an agent, in whole millimetres as in nuScenes."""
    mean, spread = SIZES[category]
    size = np.array(mean) * (1 + spread * rng.normal(size=3).clip(-2, 2))
    if not ridden:
        size[2] *= RIDERLESS_HEIGHTS[category] / mean[2]
    return size.round(3)


def build_parts(category: str, size: np.ndarray, rng: np.random.Generator, ridden: bool, lit: bool) -> np.ndarray:
    """(P, 11) parts as in `Agent.parts`; ridden: with a rider, if a cycle; lit: with its lamps on."""
    person = category.startswith("human.pedestrian")
    cycle = category in RIDERLESS_HEIGHTS
    body = BODIES["human.pedestrian" if person else category]
    paints = CLOTHES if person else PAINTS
    colours = {"paint": paints[rng.integers(len(paints))], "cloth": CLOTHES[rng.integers(len(CLOTHES))]}
    if category.endswith("construction_worker"):
        colours["cloth"] = np.array([228, 150, 30])
    if category in ("vehicle.truck", "vehicle.trailer"):
        colours["cloth"] = colours["paint"] = np.array([[224, 222, 216], [186, 188, 190], [70, 96, 140]])[
            rng.integers(3)
        ]
    if category == "vehicle.bus.rigid":
        colours["paint"] = np.array([[190, 40, 44], [54, 128, 84], [232, 228, 214], [240, 196, 60]])[rng.integers(4)]
    # The height of a ridden cycle includes its rider.
    rows = [scale_part(part, size, colours, lit, 0.66 if cycle and ridden else 1.0) for part in body]
    rows += [scale_part(part, size, colours, lit) for part in RIDER] if cycle and ridden else []
    return np.array(rows)


def scale_part(
    part: Part, size: np.ndarray, colours: Mapping[str, np.ndarray], lit: bool, height_share: float = 1.0
) -> list[float]:
    """A row of `Agent.parts`: a part of an agent of this size, which is as high as this share of the agent's height."""
    x0, x1, y0, y1, z0, z1, colour, reflectance, lamp = part
    width, length, height = size
    rgb = colours[colour] if isinstance(colour, str) else np.array(colour)
    z = np.array([z0, z1]) * height_share * height
    centre = (length * (x0 + x1) / 2, width * (y0 + y1) / 2, z.mean())
    extent = (length * (x1 - x0), width * (y1 - y0), z[1] - z[0])
    return [*centre, *extent, *rgb, reflectance, lamp if lit else 0.0]


def attribute(agent: Agent, speed: float) -> str:
    """The nuScenes attribute of an agent at this speed (m/s); '' for movable objects."""
    moving = speed > MOVING
    return {
        "traffic": "vehicle.moving" if moving else "vehicle.stopped",
        "parked": "vehicle.parked",
        "ridden": "cycle.with_rider",
        "riderless": "cycle.without_rider",
        "walking": "pedestrian.moving" if moving else "pedestrian.standing",
        "sitting": "pedestrian.sitting_lying_down",
        "": "",
    }[agent.behaviour]
