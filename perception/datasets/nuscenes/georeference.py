"""Where on earth the maps of nuScenes are. Imports no torch.

`origins.json` has latitude and longitude of each map's south-western corner, the origin of its global frame, as
published in `nuscenes.map_expansion.map_api` of the devkit.
"""

from __future__ import annotations

import json
import math
from functools import cache
from importlib.resources import files

import numpy as np

EARTH = 6.378137e6  # m, radius; the devkit's


@cache
def _origins() -> dict[str, tuple[float, float]]:
    return json.loads(files("perception.datasets.nuscenes").joinpath("origins.json").read_text(encoding="utf-8"))


def position_on_map(location: str, global_from_ego: np.ndarray) -> tuple[float, float] | None:
    """Latitude and longitude (degrees) of the vehicle, as `nuscenes.scripts.export_poses` of the devkit has them: along
    a great circle from the map's origin. None on a map without a known origin.

    Args:
        location: name of the map.
        global_from_ego: (4, 4); x is east and y is north, m.
    """
    if location not in _origins():
        return None
    latitude, longitude = (math.radians(degrees) for degrees in _origins()[location])
    east, north = float(global_from_ego[0, 3]), float(global_from_ego[1, 3])
    bearing, arc = math.atan2(east, north), math.hypot(east, north) / EARTH
    sine = math.sin(latitude) * math.cos(arc) + math.cos(latitude) * math.sin(arc) * math.cos(bearing)
    across = math.sin(bearing) * math.sin(arc) * math.cos(latitude)
    longitude += math.atan2(across, math.cos(arc) - math.sin(latitude) * sine)
    return math.degrees(math.asin(sine)), math.degrees(longitude)
