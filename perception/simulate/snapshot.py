"""The simulated world at one instant, as the sensors see it, and the categories of what they hit."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum

import numpy as np

# The simulated world at one instant, as the sensors see it: a flat painted ground, solid boxes and the weather.
#
# Everything is in the global frame: metres, z up, the ground at z = 0.


class Ground(IntEnum):
    """Surface type of a ground cell."""

    GRASS = 0
    ROAD = 1
    MARKING = 2  # white paint: lane and road dividers, stop lines
    CROSSING = 3  # zebra stripes
    WALKWAY = 4
    CARPARK = 5
    YELLOW = 6  # yellow paint: the divider between directions


GROUND_COLOURS = {  # RGB in white light
    Ground.GRASS: (98, 122, 62),
    Ground.ROAD: (92, 93, 97),
    Ground.MARKING: (225, 225, 222),
    Ground.CROSSING: (215, 215, 212),
    Ground.WALKWAY: (158, 150, 142),
    Ground.CARPARK: (112, 108, 110),
    Ground.YELLOW: (222, 178, 48),
}


@dataclass(frozen=True)
class GroundRaster:
    """The ground of a city as a top-down raster."""

    kinds: np.ndarray  # (rows, columns) uint8 of Ground; rows along y, columns along x
    origin: tuple[float, float]  # m, global x and y of the corner of cell (0, 0)
    cell: float  # m

    def at(self, xy: np.ndarray) -> np.ndarray:
        """(...) uint8 of Ground at the points xy (..., 2) m; GRASS outside the raster."""
        rows, columns = self.kinds.shape
        column = np.floor((xy[..., 0] - self.origin[0]) / self.cell).astype(np.int64)
        row = np.floor((xy[..., 1] - self.origin[1]) / self.cell).astype(np.int64)
        inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
        return np.where(inside, self.kinds[row.clip(0, rows - 1), column.clip(0, columns - 1)], Ground.GRASS)


@dataclass(frozen=True)
class Solids:
    """M upright boxes; agents, trees and houses are built of several each (such as body, cabin, wheels and lamps)."""

    centers: np.ndarray  # (M, 3) m
    sizes: np.ndarray  # (M, 3) m: length (along the heading), width, height
    yaws: np.ndarray  # (M,) rad
    colours: np.ndarray  # (M, 3) uint8 RGB in white light
    reflectances: np.ndarray  # (M,) in [0, 1] at the LiDAR's wavelength (905 nm)
    lamps: np.ndarray  # (M,) in [0, 1]: emitted light of headlamps, tail lamps, windows and street lamps
    owners: np.ndarray  # (M,) index of the agent that the box is part of, -1 for static objects
    categories: np.ndarray  # (M,) uint8 index into `CATEGORIES`

    def __getitem__(self, chosen: np.ndarray) -> Solids:
        return Solids(**{f.name: getattr(self, f.name)[chosen] for f in fields(Solids)})

    @staticmethod
    def concatenate(*several: Solids) -> Solids:
        return Solids(**{f.name: np.concatenate([getattr(each, f.name) for each in several]) for f in fields(Solids)})


@dataclass(frozen=True)
class Weather:
    """Weather and light in physical units."""

    rain: float = 0.0  # mm/h
    visibility: float = np.inf  # m, meteorological optical range (Koschmieder)
    snow: float = 0.0  # mm/h of melted water
    wet: float = 0.0  # share of the ground under a film of water, at least; rain makes its own
    snow_cover: float = 0.0  # share of the ground, roofs and trees under snow
    night: bool = False
    overcast: bool = False  # in air without precipitation, too
    ground_colours: tuple[tuple[int, int, int], ...] = tuple(GROUND_COLOURS.values())  # by `Ground`


@dataclass(frozen=True)
class Snapshot:
    """The world around the recording vehicle at one instant, without the vehicle itself."""

    solids: Solids
    ground: GroundRaster
    agent_velocities: np.ndarray  # (A, 3) m/s, indexed by `Solids.owners`
    weather: Weather


CATEGORIES = (
    "noise", "animal", "human.pedestrian.adult", "human.pedestrian.child", "human.pedestrian.construction_worker",
    "human.pedestrian.personal_mobility", "human.pedestrian.police_officer", "human.pedestrian.stroller",
    "human.pedestrian.wheelchair", "movable_object.barrier", "movable_object.debris",
    "movable_object.pushable_pullable", "movable_object.trafficcone", "static_object.bicycle_rack", "vehicle.bicycle",
    "vehicle.bus.bendy", "vehicle.bus.rigid", "vehicle.car", "vehicle.construction", "vehicle.emergency.ambulance",
    "vehicle.emergency.police", "vehicle.motorcycle", "vehicle.trailer", "vehicle.truck", "flat.driveable_surface",
    "flat.other", "flat.sidewalk", "flat.terrain", "static.manmade", "static.other", "static.vegetation", "vehicle.ego",
)  # fmt: skip
NOISE = 0  # returns from the air
MANMADE, VEGETATION = CATEGORIES.index("static.manmade"), CATEGORIES.index("static.vegetation")
_FLAT = {Ground.GRASS: "flat.terrain", Ground.WALKWAY: "flat.sidewalk"}  # the others can be driven on
# (7,) uint8 category by `Ground`.
GROUND_CATEGORIES = np.array([CATEGORIES.index(_FLAT.get(kind, "flat.driveable_surface")) for kind in Ground], np.uint8)
