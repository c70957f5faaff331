"""Conditions by area: polygons of a GeoJSON file (RFC 7946) whose properties name them.

    {"type": "Feature", "properties": {"city": "munich", "location": "munich-north"}, "geometry": {"type": "Polygon",
     "coordinates": [[[11.4, 48.0], [11.8, 48.0], [11.8, 48.3], [11.4, 48.3], [11.4, 48.0]]]}}

A property that is called like a kind of condition is its value in the area. `location` is the name of a map of the
area, or a list of names, for drives without a position. Other properties are ignored.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from perception.errors import InputError

LOCATION = "location"


@dataclass(frozen=True)
class Geofence:
    conditions: Mapping[str, str]  # kind -> value
    locations: frozenset[str]  # names of maps
    area: shapely.Geometry | None  # longitude, latitude in degrees, WGS 84; None: only by the name of the map


class Geofences:
    """The areas of a file. Where several of them name the same kind of condition, the smallest counts."""

    def __init__(self, fences: Sequence[Geofence], sha256: str) -> None:
        self.sha256 = sha256
        size = [0.0 if fence.area is None else fence.area.area for fence in fences]
        self._fences = [fences[i] for i in np.argsort(size, kind="stable")]
        self._fenced = [fence for fence in self._fences if fence.area is not None]
        self._areas = np.array([fence.area for fence in self._fenced])
        shapely.prepare(self._areas)

    def at(self, position: tuple[float, float] | None, location: str = "") -> dict[str, str]:
        """The conditions (kind -> value) at a place; a border belongs to its area.

        Args:
            position: latitude, longitude in degrees, WGS 84. If it is known, the location counts for features without
                an area only.
        """
        within: list[Geofence] = []
        if position is not None and self._fenced:
            latitude, longitude = position
            # The antimeridian is the border of the areas on both of its sides.
            longitudes = {longitude, -longitude} if abs(longitude) == 180 else {longitude}
            inside = np.any([shapely.intersects_xy(self._areas, each, latitude) for each in longitudes], axis=0)
            within = [fence for fence, there in zip(self._fenced, inside, strict=True) if there]
        within += [
            fence for fence in self._fences if location in fence.locations and (position is None or fence.area is None)
        ]
        found: dict[str, str] = {}
        for fence in within:
            found = {**fence.conditions, **found}
        return found


def load_geofences(path: Path, conditions: Mapping[str, Sequence[str]]) -> Geofences:
    """Read a GeoJSON file.

    Args:
        conditions: kind -> values that its properties may name.
    """
    try:
        data = path.read_bytes()
        content = json.loads(data.decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot read the geofences ({' '.join(str(error).split())[:160]})") from None
    kind = content.get("type") if isinstance(content, dict) else None
    features = [content] if kind == "Feature" else content.get("features") if kind == "FeatureCollection" else None
    if not isinstance(features, list):
        raise InputError(f"{path}: not a GeoJSON FeatureCollection with a list of features")
    fences = []
    for number, feature in enumerate(features):
        try:
            fences.append(_fence(feature, conditions))
        except InputError as error:
            raise InputError(f"{path}: features.{number}: {error}") from None
    fences = [fence for fence in fences if fence.conditions]
    if not fences:
        raise InputError(f"{path}: no feature has a property {', '.join(conditions)}; name the conditions of the areas")
    return Geofences(fences, hashlib.sha256(data).hexdigest())


def _fence(feature: Any, conditions: Mapping[str, Sequence[str]]) -> Geofence:
    if not isinstance(feature, dict) or feature.get("type") != "Feature":
        raise InputError("not a Feature")
    properties, geometry = feature.get("properties") or {}, feature.get("geometry")
    if not isinstance(properties, dict):
        raise InputError("properties are not an object")
    named = {kind: properties[kind] for kind in conditions if properties.get(kind) is not None}
    for kind, value in named.items():
        if value not in conditions[kind]:
            raise InputError(f"{kind} {json.dumps(value)[:60]} is none of {', '.join(conditions[kind])}")
    locations = properties.get(LOCATION) or []
    locations = [locations] if isinstance(locations, str) else locations
    if not isinstance(locations, list) or not all(isinstance(each, str) for each in locations):
        raise InputError(f"{LOCATION} is neither a name nor a list of names")
    if geometry is None and named and not locations:
        raise InputError(f"neither a geometry nor a {LOCATION}")
    area = _area(geometry) if geometry is not None and named else None
    return Geofence(named, frozenset(locations) - {""}, area)


def _area(geometry: Any) -> shapely.Geometry:
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    if kind not in ("Polygon", "MultiPolygon"):
        raise InputError(f"the geometry is a {kind}, not a Polygon or MultiPolygon")
    try:
        area = shapely.from_geojson(json.dumps(geometry))
    except shapely.GEOSException as error:
        raise InputError(f"not a {kind} of GeoJSON ({' '.join(str(error).split())})") from None
    if (np.abs(shapely.get_coordinates(area)) > (180, 90)).any():
        raise InputError("a position is beyond longitude 180 or latitude 90; GeoJSON has the longitude first")
    rings = [ring for polygon in shapely.get_parts(area) for ring in (polygon.exterior, *polygon.interiors)]
    if any((np.abs(np.diff(shapely.get_coordinates(ring)[:, 0])) > 180).any() for ring in rings):
        raise InputError(
            "an edge spans more than 180 degrees of longitude; cut an area that crosses the antimeridian there "
            "(RFC 7946, 3.1.9)"
        )
    if not shapely.is_valid(area) or not area.area > 0:
        raise InputError(f"not a valid polygon ({shapely.is_valid_reason(area)}); draw it without crossing itself")
    return area
