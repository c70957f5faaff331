"""Conditions by area: against brute force on the polygons' edges, and what a file may not hold."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from geofences import box, feature, polygon, written
from hypothesis import given
from hypothesis import strategies as st
from refusals import one_line_error

from perception.errors import InputError
from perception.scene.geofence import load_geofences

CONDITIONS = {"city": ("munich", "suva"), "road": ("urban", "highway")}


def test_areas_holes_and_the_smallest_area(tmp_path: Path) -> None:
    city = feature(polygon(box(11, 48, 12, 49), box(11.4, 48.4, 11.6, 48.6)), city="munich", road="urban", name="M")
    road = feature(polygon(box(11.9, 48, 12.2, 48.1)), road="highway")
    for order in ((city, road), (road, city)):
        fences = load_geofences(written(tmp_path, *order), CONDITIONS)
        assert fences.at((48.2, 11.2)) == {"city": "munich", "road": "urban"}
        assert fences.at((48.5, 11.5)) == {}  # in the hole
        assert fences.at((48.05, 11.95)) == {"city": "munich", "road": "highway"}
        assert fences.at((48.05, 12.1)) == {"road": "highway"}
        assert fences.at((48.0, 11.0)) == {"city": "munich", "road": "urban"}  # the corner
        assert fences.at((11.2, 48.2)) == {}  # latitude first
        assert fences.at(None) == {}
        assert pickle.loads(pickle.dumps(fences)).at((48.2, 11.2)) == {"city": "munich", "road": "urban"}


def test_an_area_across_the_antimeridian_is_two(tmp_path: Path) -> None:
    parts = [[box(177, -19, 180, -16)], [box(-180, -19, -179, -16)]]
    fences = load_geofences(
        written(tmp_path, feature({"type": "MultiPolygon", "coordinates": parts}, city="suva")), CONDITIONS
    )
    for longitude, there in ((178, True), (180, True), (-180, True), (-179.5, True), (-178, False), (0, False)):
        assert fences.at((-18, longitude)) == ({"city": "suva"} if there else {})
    east = load_geofences(written(tmp_path, feature(polygon(box(177, -19, 180, -16)), city="suva")), CONDITIONS)
    assert east.at((-18, -180)) == {"city": "suva"}


def test_the_name_of_the_map_stands_in_for_the_position(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        feature(polygon(box(11, 48, 12, 49)), city="munich", location=["munich-north", "munich-south"]),
        feature(None, road="highway", location="A9"),
        feature({"type": "Point", "coordinates": [1, 2]}, name="of no condition"),
    )
    fences = load_geofences(path, CONDITIONS)
    assert fences.at(None, "munich-south") == {"city": "munich"}
    assert fences.at((0, 0), "munich-south") == {}  # known to be elsewhere
    assert fences.at((48.5, 11.5), "A9") == {"city": "munich", "road": "highway"}
    assert fences.at(None, "") == fences.at(None, "paris") == {}


def test_one_feature_is_a_file_too(tmp_path: Path) -> None:
    path = tmp_path / "area.geojson"
    path.write_text(json.dumps(feature(polygon(box(11, 48, 12, 49)), city="munich")))
    assert load_geofences(path, CONDITIONS).at((48.5, 11.5)) == {"city": "munich"}


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
    path = written(tmp_path_factory.mktemp("star"), feature(polygon(star.tolist()), city="munich"))
    fences = load_geofences(path, CONDITIONS)
    for x, y in data.draw(st.lists(st.tuples(st.floats(8, 32), st.floats(28, 52)), min_size=10, max_size=10)):
        edge = min(np.abs(np.hypot(*(star - [x, y]).T)).min(), 1)
        if edge > 1e-6:
            assert bool(fences.at((y, x))) == inside(star, x, y)


SQUARE = polygon(box(11, 48, 12, 49))
CROSSING = [[0, 0], [1, 1], [1, 0], [0, 1], [0, 0]]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (feature(SQUARE, city="paris"), 'city "paris" is none of munich, suva'),
        (feature(SQUARE, city=["munich"]), r'city \["munich"\] is none of munich, suva'),
        (feature(SQUARE, city="munich", location=3), "location is neither a name nor a list of names"),
        (feature(None, city="munich"), "neither a geometry nor a location"),
        (feature({"type": "Point", "coordinates": [1, 2]}, city="munich"), "a Point, not a Polygon or MultiPolygon"),
        (feature([], city="munich"), "a None, not a Polygon or MultiPolygon"),
        (feature({"type": "Polygon"}, city="munich"), "not a list of rings"),
        (feature({"type": "MultiPolygon"}, city="munich"), "no coordinates"),
        (feature(polygon([[11, 48], [12, 48], [11, 48]]), city="munich"), "at least four positions"),
        (feature(polygon([[11, 48], [12, "48"], [12, 49], [11, 48]]), city="munich"), "at least four positions"),
        (feature(polygon([[11, 48], [12], [12, 49], [11, 48]]), city="munich"), "at least four positions"),
        (feature(polygon([[11, 48], [12, 48], [12, 49], [11, 49]]), city="munich"), "a ring is not closed"),
        (feature(polygon(box(48, 91, 49, 95)), city="munich"), "GeoJSON has the longitude first"),
        (feature(polygon(box(170, 0, 190, 5)), city="munich"), "beyond longitude 180"),
        (feature(polygon([[11, float("nan")], [12, 48], [12, 49], [11, 48]]), city="munich"), "beyond longitude 180"),
        (feature(polygon(box(-179, -19, 179, -16)), city="suva"), "cut an area that crosses the antimeridian"),
        (feature(polygon(CROSSING), city="munich"), "not a valid polygon .Self-intersection"),
        (feature(polygon([[0, 0], [1, 1], [0, 0], [0, 0]]), city="munich"), "not a valid polygon"),
        (feature(polygon(), city="munich"), "not a list of rings"),
        ({"type": "Polygon"}, "not a Feature"),
        ("munich", "not a Feature"),
        ({"type": "Feature", "properties": [1], "geometry": SQUARE}, "properties are not an object"),
    ],
)
def test_a_wrong_feature_is_one_line(tmp_path: Path, wrong: Any, message: str) -> None:
    path = written(tmp_path, feature(SQUARE, city="munich"), wrong)
    with one_line_error(rf"areas.geojson: features.1: .*{message}"):
        load_geofences(path, CONDITIONS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot read the geofences"),
        ("[" * 100_000, "cannot read the geofences"),
        ("\xff", "cannot read the geofences"),
        ("[]", "not a GeoJSON FeatureCollection"),
        ('{"type": "FeatureCollection"}', "not a GeoJSON FeatureCollection"),
        ('{"type": "FeatureCollection", "features": []}', "no feature has a property city, road"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "areas.geojson"
    path.write_bytes(text.encode("latin-1"))
    with one_line_error(message):
        load_geofences(path, CONDITIONS)


def test_no_file(tmp_path: Path) -> None:
    with one_line_error("cannot read the geofences"):
        load_geofences(tmp_path / "areas.geojson", CONDITIONS)


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
    assert "\n" not in refusal(path)


def refusal(path: Path) -> str:
    try:
        load_geofences(path, CONDITIONS)
    except InputError as error:
        return str(error)
    return ""
