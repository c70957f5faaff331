"""What a simulated moment is made of, for the sensors to look at: a flat painted ground and solid boxes on it.

Everything is in the global frame: metres, z up, the ground at z = 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np


class Ground(IntEnum):
    """What the ground is, cell by cell."""

    GRASS = 0
    ROAD = 1
    MARKING = 2  # white paint: lane and road dividers, stop lines
    CROSSING = 3  # zebra stripes
    WALKWAY = 4
    CARPARK = 5
    YELLOW = 6  # yellow paint: the divider between directions


@dataclass(frozen=True)
class GroundRaster:
    """The painted ground of a city, as a picture seen from above."""

    kinds: np.ndarray  # (rows, columns) uint8 of Ground; the row runs along y, the column along x
    origin: tuple[float, float]  # m, global x and y of the corner of cell (0, 0)
    cell: float  # m

    def at(self, xy: np.ndarray) -> np.ndarray:
        """(...) uint8 of Ground under the points xy (..., 2); GRASS outside the raster."""
        rows, columns = self.kinds.shape
        column = np.floor((xy[..., 0] - self.origin[0]) / self.cell).astype(np.int64)
        row = np.floor((xy[..., 1] - self.origin[1]) / self.cell).astype(np.int64)
        inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
        return np.where(inside, self.kinds[row.clip(0, rows - 1), column.clip(0, columns - 1)], Ground.GRASS)


@dataclass(frozen=True)
class Solids:
    """M upright boxes. A vehicle is several (body, cabin, wheels, lamps), a person too; so are trees and houses."""

    centers: np.ndarray  # (M, 3) m
    sizes: np.ndarray  # (M, 3) m: along the heading (length), across it (width), height
    yaws: np.ndarray  # (M,) rad
    colours: np.ndarray  # (M, 3) uint8 RGB in white light
    reflectances: np.ndarray  # (M,) in [0, 1] at the LiDAR's wavelength (905 nm)
    lamps: np.ndarray  # (M,) in [0, 1]: light of its own, such as head and tail lamps, windows, street lamps at night
    owners: np.ndarray  # (M,) index of the agent it is part of, -1 for scenery


@dataclass(frozen=True)
class Weather:
    """Circumstances of a drive, in physical units."""

    rain: float = 0.0  # mm/h
    visibility: float = np.inf  # m, meteorological optical range (Koschmieder); small in fog
    night: bool = False


@dataclass(frozen=True)
class Snapshot:
    """The world around the vehicle at one instant, without the vehicle itself."""

    solids: Solids
    ground: GroundRaster
    agent_velocities: np.ndarray  # (A, 3) m/s of each agent that `Solids.owners` counts
    weather: Weather
