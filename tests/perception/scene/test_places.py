"""What a place tells: areas of the map, by their edges."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import one_line_error
from hypothesis import given
from hypothesis import strategies as st
from maps import box, feature, polygon, write_map

from perception.errors import InputError
from perception.scene.geofence import load_geofences

AREAS = {"city": ("munich", "suva"), "road": ("urban", "highway")}
SQUARE = polygon(box(11, 48, 12, 49))


def test_areas_holes_and_the_smallest_area(tmp_path: Path) -> None:
    city = feature(polygon(box(11, 48, 12, 49), box(11.4, 48.4, 11.6, 48.6)), city="munich", road="urban", name="M")
    road = feature(polygon(box(11.9, 48, 12.2, 48.1)), road="highway")
    for order in ((city, road), (road, city)):
        fences = load_geofences(write_map(tmp_path, *order), AREAS)
        assert fences.at((48.2, 11.2)) == {"city": "munich", "road": "urban"}
        assert fences.at((48.5, 11.5)) == {}  # in the hole
        assert fences.at((48.05, 11.95)) == {"city": "munich", "road": "highway"}
        assert fences.at((48.05, 12.1)) == {"road": "highway"}
        assert fences.at((48.0, 11.0)) == {"city": "munich", "road": "urban"}  # the corner
        assert fences.at((11.2, 48.2)) == {}  # latitude first
        assert fences.at(None) == {}
        assert pickle.loads(pickle.dumps(fences)).at((48.2, 11.2)) == {"city": "munich", "road": "urban"}


def test_an_area_across_the_antimeridian_is_two(tmp_path: Path) -> None:
    parts = {"type": "MultiPolygon", "coordinates": [[box(177, -19, 180, -16)], [box(-180, -19, -179, -16)]]}
    fences = load_geofences(write_map(tmp_path, feature(parts, city="suva")), AREAS)
    for longitude, there in ((178, True), (180, True), (-180, True), (-179.5, True), (-178, False), (0, False)):
        assert fences.at((-18, longitude)) == ({"city": "suva"} if there else {})
    alone = tmp_path / "areas.geojson"  # a feature that is a file
    alone.write_text(json.dumps(feature(polygon(box(177, -19, 180, -16)), city="suva")))
    assert load_geofences(alone, AREAS).at((-18, -180)) == {"city": "suva"}


def test_the_name_of_the_map_stands_in_for_the_position(tmp_path: Path) -> None:
    path = write_map(
        tmp_path,
        feature(SQUARE, city="munich", location=["munich-north", "munich-south"]),
        feature(None, road="highway", location="A9"),
        feature({"type": "Point", "coordinates": [1, 2]}, name="of no condition"),
    )
    fences = load_geofences(path, AREAS)
    assert fences.at(None, "munich-south") == {"city": "munich"}
    assert fences.at((0, 0), "munich-south") == {}  # known to be elsewhere
    assert fences.at((48.5, 11.5), "A9") == {"city": "munich", "road": "highway"}
    assert fences.at(None, "") == fences.at(None, "paris") == {}


def inside(ring: np.ndarray, x: float, y: float) -> bool:
    """By the number of edges that a ray to the east crosses."""
    (x0, y0), (x1, y1) = ring[:-1].T, ring[1:].T
    crosses = (y0 > y) != (y1 > y)
    at = x0 + (y - y0) / np.where(crosses, y1 - y0, 1) * (x1 - x0)
    return bool(np.count_nonzero(crosses & (at > x)) % 2)


@given(st.data())
def test_a_star_is_what_rays_say(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    radii = data.draw(st.lists(st.floats(1, 10), min_size=5, max_size=12))
    angles = np.linspace(0, 2 * np.pi, len(radii), endpoint=False)
    star = np.stack([20 + radii * np.cos(angles), 40 + radii * np.sin(angles)], axis=1)
    star = np.concatenate([star, star[:1]])
    path = write_map(tmp_path_factory.mktemp("star"), feature(polygon(star.tolist()), city="munich"))
    fences = load_geofences(path, AREAS)
    for x, y in data.draw(st.lists(st.tuples(st.floats(8, 32), st.floats(28, 52)), min_size=10, max_size=10)):
        edge = min(np.abs(np.hypot(*(star - [x, y]).T)).min(), 1)
        if edge > 1e-6:
            assert bool(fences.at((y, x))) == inside(star, x, y)


def shaped(*ring: list[Any]) -> dict[str, Any]:
    return feature(polygon(list(ring)), city="munich")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (feature(SQUARE, city="paris"), 'city "paris" is none of munich, suva'),
        (feature(None, city="munich"), "neither a geometry nor a location"),
        (feature({"type": "Point", "coordinates": [1, 2]}, city="munich"), "a Point, not a Polygon or MultiPolygon"),
        (feature({"type": "Polygon"}, city="munich"), "a Polygon of GeoJSON .*'coordinates' not found"),
        (shaped([11, 48], [12, 48], [11, 48]), "not a valid polygon .Too few points"),
        (shaped([11, 48], [12, 48], [12, 49], [11, 49]), "do not form a closed"),
        (shaped(*box(48, 91, 49, 95)), "GeoJSON has the longitude first"),
        (shaped(*box(170, 0, 190, 5)), "beyond longitude 180"),
        (shaped([11, float("nan")], [12, 48], [12, 49], [11, 48]), "invalid literal"),
        (shaped(*box(-179, -19, 179, -16)), "cut an area that crosses the antimeridian"),
        (shaped([0, 0], [1, 1], [1, 0], [0, 1], [0, 0]), "not a valid polygon .Self-intersection"),
        ("munich", "not a Feature"),
        ({"type": "Feature", "properties": [1], "geometry": SQUARE}, "properties are not an object"),
        # Files as they are.
        (None, "cannot read the geofences"),
        (b"[]", "not a GeoJSON FeatureCollection"),
        (b'{"type": "FeatureCollection", "features": []}', "no feature has a property city, road"),
    ],
)
def test_a_wrong_feature_or_file_is_one_line(tmp_path: Path, wrong: Any, message: str) -> None:
    path = tmp_path / "areas.geojson"
    if isinstance(wrong, bytes):
        path.write_bytes(wrong)
    elif wrong is not None:
        write_map(tmp_path, feature(SQUARE, city="munich"), wrong)
        message = f"areas.geojson: features.1: .*{message}"
    with one_line_error(message):
        load_geofences(path, AREAS)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text() | st.integers(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=15,
)


@given(json_values, st.sampled_from(["features", "properties", "geometry", "coordinates", "ring"]))
def test_any_json_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, value: Any, where: str) -> None:
    good = feature(polygon(box(11, 48, 12, 49)), city="munich")
    content: dict[str, Any] = {"type": "FeatureCollection", "features": [good]}
    target: Any = {"features": content, "ring": good["geometry"]["coordinates"]}.get(where, good)
    target = good["geometry"] if where == "coordinates" else target
    target[0 if where == "ring" else where] = value
    path = tmp_path_factory.mktemp("any") / "areas.geojson"
    path.write_text(json.dumps(content))
    refused = ""
    try:
        load_geofences(path, AREAS)
    except InputError as error:
        refused = str(error)
    assert "\n" not in refused
