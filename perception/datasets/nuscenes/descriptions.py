"""How a scene's description encodes its conditions, and where the maps lie on the earth."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files

import numpy as np

from perception.frame import Conditions
from perception.taxonomy import Taxonomy

DEFAULT_CONDITIONS = ("clear", "day")  # conditions of a scene whose description says nothing else
EARTH = 6.378137e6  # m, radius; the devkit's


def phases_of(description: str, location: str, taxonomy: Taxonomy) -> list[tuple[float, Conditions]]:
    """(start, conditions) of each phase of a drive; s from its first keyframe.

    Recorded drives have one phase. The description of a simulated drive with several is such as
    'parked cars, peds; from 9.75 s: Rain; from 19.75 s: Rain, Night'.
    """
    first, *changes = re.split(r"; from (\d+(?:\.\d+)?) s: ", description)
    phases = [(0.0, first), *((float(start), text) for start, text in zip(changes[::2], changes[1::2], strict=True))]
    return [(start, conditions_of(text, location, taxonomy)) for start, text in phases]


def conditions_of(description: str, location: str, taxonomy: Taxonomy) -> Conditions:
    """Conditions from a scene's description, as the taxonomy says: in words or tags; None for what it does not tell."""
    if taxonomy.descriptions == "tags":
        return Conditions(**_read_tags(description, taxonomy.conditions))
    return Conditions(**_read_words(description, location, taxonomy.conditions))


def _read_tags(description: str, vocabulary: Mapping[str, Sequence[str]]) -> dict[str, str | None]:
    """Conditions from tags, such as 'weather.rain;daytime.noon'."""
    tags = set(re.findall(r"\w+\.\w+", description))
    return {
        kind: next((value for value in values if f"{kind}.{value}" in tags), None)
        for kind, values in vocabulary.items()
    }


def _read_words(description: str, location: str, vocabulary: Mapping[str, Sequence[str]]) -> dict[str, str | None]:
    """Conditions from words, such as 'Night, after rain, many peds', and the location.

    A value is known where its word, or one such as rainy or raining, is in the description, or where the location
    begins with it. A description that names no weather is of clear weather, one that names no light is by day. A wet
    road after rain counts as rain, as in published rain splits, because it absorbs LiDAR returns as well.
    """
    words = set(re.findall(r"[a-z_]+", description.lower()))  # whole words: "train" is not rain
    place = location.lower().split("-", maxsplit=1)[0]
    found = {}
    for kind, values in vocabulary.items():
        silent = [value for value in values if value in DEFAULT_CONDITIONS]
        forms = {value: {value, f"{value}y", f"{value}ing", f"{value}{value[-1]}y"} for value in values}  # foggy
        said = [value for value in values if value not in silent and (words & forms[value] or place == value)]
        found[kind] = next(iter([*said, *(silent if words else ())]), None)
    return found


@cache
def _origins() -> dict[str, tuple[float, float]]:
    """Latitude and longitude of each map's south-western corner, the origin of its global frame, as published in
    `nuscenes.map_expansion.map_api` of the devkit."""
    return json.loads(files("perception.datasets.nuscenes").joinpath("origins.json").read_text(encoding="utf-8"))


def position_on_map(location: str, global_from_ego: np.ndarray) -> tuple[float, float] | None:
    """Latitude and longitude (degrees) of the vehicle, as `nuscenes.scripts.export_poses` of the devkit has them: along
    a great circle from the map's origin. None on a map without a known origin.

    Args:
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
