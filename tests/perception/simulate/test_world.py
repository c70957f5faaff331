"""The simulated world without sensors: its map is the devkit's, its agents behave; what world files change in it."""

import re
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import pytest
import shapely
import yaml
from commands import one_line_error, refuses
from hypothesis import given
from hypothesis import strategies as st
from nuscenes.map_expansion.map_api import NuScenesMap
from repository import ROOT
from shapely.geometry import LineString, Point, Polygon
from shapely.ops import unary_union
from simulated import WORLDS, courses, in_town, outline
from vocabulary import NUSCENES

from perception.datasets.nuscenes.descriptions import conditions_of
from perception.io.shipped import shipped_files
from perception.simulate.agents import MOVING
from perception.simulate.city import City, build_city
from perception.simulate.conditions import Course, describe, every, parse
from perception.simulate.nuscenes_writer import map_expansion, write_maps
from perception.simulate.scenario import EGO_LENGTH, EGO_REAR, build_world
from perception.simulate.snapshot import Ground, Weather
from perception.simulate.world import World
from perception.simulate.worlds import Agents, Place, Streets, Worlds
from perception.taxonomy import ObjectClass, Taxonomy

BOSTON, SINGAPORE = (course.place for course in courses("clear-day-boston", "clear-day-singapore"))
MUNICH = Place(  # by other numbers than those
    name="munich",
    location="munich-west",
    streets=Streets(columns=(2, 1, 2), rows=(2, 1, 2), spacing=(100.0, 130.0), lane_width=3.2, parking=2.5, speed=12.0),
    agents=Agents(traffic=0.03, cycles=0.2),
)
MAPPED = {"boston": BOSTON, "singapore": in_town("clear-day-singapore")[0].place}
DURATION = 8.0  # s
FOR_FEET = ("walkway", "ped_crossing", "carpark_area")  # people cross driveways, which are part of the car parks


@pytest.fixture(scope="module", params=[(BOSTON, 0), (SINGAPORE, 1), (MUNICH, 0)], ids=lambda each: each[0].name)
def world(request: pytest.FixtureRequest) -> World:
    place, seed = request.param
    return build_world(place, Weather(), DURATION, np.random.default_rng([7, seed]))


@pytest.fixture(scope="module", params=MAPPED)
def mapped(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[City, NuScenesMap]:
    """A city, and its map expansion as the devkit reads it."""
    city, root = build_city(MAPPED[request.param]), tmp_path_factory.mktemp(request.param)
    write_maps(root, city)
    return city, NuScenesMap(str(root), city.place.location)


def footprints(world: World, time: float) -> list[Polygon]:
    """The boxes of all agents seen from above, and last that of the recording vehicle."""
    xy, yaw, _ = world.agents_at(time)
    pose = world.global_from_ego_at(time)
    boxes = [outline(xy[n], yaw[n], agent.size[1], agent.size[0]) for n, agent in enumerate(world.agents)]
    middle = pose[:2, 3] + (EGO_LENGTH / 2 - EGO_REAR) * pose[:2, 0]
    return [*boxes, outline(middle, np.arctan2(pose[1, 0], pose[0, 0]), EGO_LENGTH, 1.75)]


def test_nobody_drives_or_walks_through_another(world: World) -> None:
    for time in np.arange(-0.9, DURATION, 0.3):
        boxes = footprints(world, time)
        first, second = shapely.STRtree(boxes).query(boxes, predicate="intersects")
        hits = [(a, b) for a, b in zip(first, second, strict=True) if a < b]
        names = [[world.agents[n].category if n < len(world.agents) else "ego" for n in pair] for pair in hits]
        assert not hits, f"at {time:.1f} s: {names}"


def test_everybody_keeps_to_the_ground_that_is_theirs(world: World) -> None:
    city = world.city
    road = unary_union(city.polygons["drivable_area"])
    parking = unary_union(city.polygons["carpark_area"]).buffer(0.6)
    feet = unary_union([shape for layer in FOR_FEET for shape in city.polygons[layer]])
    for time in (0.0, 4.0, 8.0):
        boxes = footprints(world, time)
        assert road.contains(boxes[-1])
        for agent, box in zip(world.agents, boxes, strict=False):
            if agent.category == "human.pedestrian.construction_worker" or agent.behaviour == "":
                assert road.contains(box.centroid), agent.category
            elif agent.category.startswith("human") or agent.behaviour == "riderless":
                assert feet.contains(box.centroid), agent.category
            else:
                parked = agent.behaviour == "parked" and parking.contains(box)
                assert parked or road.contains(box), agent.category


def test_traffic_keeps_to_its_side(world: World) -> None:
    dividers = shapely.STRtree(world.city.lines["road_divider"])
    seen = 0
    for time in (0.0, 3.0, 6.0):
        xy, yaw, velocity = world.agents_at(time)
        for n, agent in enumerate(world.agents):
            speed = np.linalg.norm(velocity[n])
            if agent.behaviour not in ("traffic", "ridden") or speed < 1.0:
                continue
            line: LineString = dividers.geometries[dividers.nearest(Point(xy[n]))]
            start, end = np.array(line.coords)
            along = (end - start) / np.linalg.norm(end - start)
            at = (xy[n] - start) @ along
            if not 0 <= at <= line.length or abs(np.cos(yaw[n] - np.arctan2(*along[::-1]))) < 0.9:
                continue  # not between junctions
            heading = np.array([np.cos(yaw[n]), np.sin(yaw[n])])
            to_divider = start + at * along - xy[n]
            left = heading[0] * to_divider[1] - heading[1] * to_divider[0] > 0
            assert left == (world.city.place != SINGAPORE), agent.category
            seen += 1
    assert seen > 5


def test_motion_is_plausible_and_there_is_much_of_it(world: World) -> None:
    """Nobody moves sideways, faster than cars or people do, or brakes harder than they can."""
    speeds = []
    for time in np.arange(0.05, DURATION, 0.1):
        _, yaw, velocity = world.agents_at(time)
        speed = np.linalg.norm(velocity, axis=1)
        speeds.append(speed)
        for n in np.flatnonzero(speed > 0.5):
            agent = world.agents[n]
            slip = np.abs(np.sin(np.arctan2(velocity[n, 1], velocity[n, 0]) - yaw[n]))
            assert slip < 0.35, (agent.category, slip)
            assert speed[n] < (2.5 if agent.category.startswith("human") else 14.0)
    for n, agent in enumerate(world.agents):
        if agent.behaviour == "traffic":
            assert np.abs(np.diff(np.array(speeds)[:, n])).max() < 1.0  # m/s in 0.1 s
        if agent.behaviour in ("parked", "riderless", "sitting", ""):
            assert np.array(speeds)[:, n].max() < MOVING
    recorded = (world.times >= 0) & (world.times <= DURATION)
    path, gaps = world.ego_xy[recorded], np.linalg.norm(world.xy - world.ego_xy[:, None], axis=2)[recorded]
    cars = np.array([agent.category == "vehicle.car" for agent in world.agents])
    assert 20 <= (gaps < 50).sum(axis=1).mean() <= 80
    assert (gaps[:, cars] < 50).sum(axis=1).mean() >= 8
    assert np.linalg.norm(np.diff(path, axis=0), axis=1).sum() > 2.5 * DURATION


def test_painted_ground_is_the_map_of_the_devkit(mapped: tuple[City, NuScenesMap]) -> None:
    city, nusc_map = mapped
    x, y = city.plan.to_global(city.plan.centre(1, 1))
    side, pixels = 120.0, 1200
    layers = ["drivable_area", "walkway", "carpark_area"]
    masks = nusc_map.get_map_mask((x, y, side, side), 0.0, layers, (pixels, pixels))
    # The devkit rounds corners to whole pixels, so that its pixels lie on whole coordinates.
    steps = np.arange(pixels) / pixels * side - side / 2
    kinds = city.ground.at(np.stack(np.meshgrid(x + steps, y + steps), axis=-1))
    road = [Ground.ROAD, Ground.MARKING, Ground.CROSSING, Ground.YELLOW]
    for mask, found in zip(masks, (road, [Ground.WALKWAY], [Ground.CARPARK]), strict=True):
        ours, theirs = np.isin(kinds, found), mask > 0
        # Both draw polygons by whole cells of 0.1 m, so edges may differ by two of them, and nothing else.
        assert not cv2.erode((ours ^ theirs).astype(np.uint8), np.ones((3, 3))).any()
        if found is road:
            assert (ours & theirs).sum() / (ours | theirs).sum() > 0.99


def test_every_lane_leads_on_and_its_curve_is_the_devkits(mapped: tuple[City, NuScenesMap]) -> None:
    _, nusc_map = mapped
    lanes = nusc_map.lane + nusc_map.lane_connector
    curves = nusc_map.discretize_lanes([lane["token"] for lane in lanes], 1.0)
    for lane in lanes:
        following = nusc_map.get_outgoing_lane_ids(lane["token"])
        assert following
        shape = nusc_map.extract_polygon(lane["polygon_token"])
        assert shape.is_valid
        points = np.array(curves[lane["token"]])[:, :2]
        assert all(shape.buffer(0.3).contains(Point(p)) for p in points[::10])
        for other in following:
            assert np.linalg.norm(points[-1] - np.array(curves[other])[0, :2]) < 1.1
            assert lane["token"] in nusc_map.get_incoming_lane_ids(other)


STREETS = {"columns": [1, 2, 1], "rows": [1, 2, 1]}
OWN = {
    "munich": {"kind": "city", "location": "munich-west", "streets": STREETS, "agents": {"cycles": 0.3}},
    "summer": {"kind": "season"},
    "winter": {"kind": "season", "vegetation": {"leaves": ["#6b5c4a"]}, "ground": {"snow": 0.5, "grass": "#8a8468"}},
    "frost": {"kind": "season", "ground": {"snow": [0.1, 0.2]}},
    "sleet": {"kind": "weather", "air": {"rain": 2, "snow": [1, 3]}, "ground": {"snow": 0.25}},
    "rain": {"kind": "weather", "air": {"rain": 1.5}},
}
KINDS = {"weather": ["clear", "rain", "sleet", "snow"], "season": ["summer", "frost", "winter"], "city": ["munich"]}


def taxonomy_of(conditions: Mapping[str, object]) -> Taxonomy:
    return Taxonomy.model_validate({"name": "own", "classes": (ObjectClass(name="car"),), "conditions": conditions})


def folder_of(path: Path, files: Mapping[str, object]) -> Path:
    path.mkdir(exist_ok=True)
    for name, content in files.items():
        (path / f"{name}.yaml").write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return folder_of(tmp_path / "worlds", OWN)


def drawn(course: Course, phase: int = 0, seed: int = 0) -> Weather:
    return course.phases[phase].surroundings.draw(np.random.default_rng(seed))


def test_earlier_kinds_override_later_ones(own: Path) -> None:
    """And what no file has stays as it is in a plain town on a clear day; seasons of a city share its map."""
    names = ["clear-summer-munich", "clear-winter-munich", "sleet-winter-munich", "rain-frost-munich"]
    clear, winter, sleet, rain = parse(names, taxonomy_of(KINDS), Worlds(own))
    assert drawn(clear) == Weather()
    grass = drawn(winter).ground_colours[Ground.GRASS]
    assert (drawn(winter).snow_cover, drawn(winter).snow, grass) == (0.5, 0, (0x8A, 0x84, 0x68))
    assert drawn(sleet).ground_colours == drawn(winter).ground_colours
    assert (drawn(sleet).snow_cover, drawn(sleet).rain) == (0.25, 2.0)
    assert 1 <= drawn(sleet).snow <= 3
    assert drawn(rain).rain == 1.5  # not that of the package
    assert 0.1 <= drawn(rain).snow_cover <= 0.2
    assert clear.place.agents.cycles == 0.3
    assert clear.place.agents.walkers == type(clear.place.agents)().walkers
    assert (clear.place.name, clear.place.location) == ("munich", "munich-west")
    assert winter.place.vegetation.leaves == ("#6b5c4a",)
    assert winter.place.streets == clear.place.streets
    green, bare = build_city(clear.place), build_city(winter.place)
    assert map_expansion(green) == map_expansion(bare)
    assert not np.array_equal(green.static_objects.colours, bare.static_objects.colours)


def test_the_world_files_of_the_package_and_of_the_page_are_right(tmp_path: Path) -> None:
    names = {*shipped_files("world")}
    assert {*NUSCENES.condition_values, "snow"} <= names
    kinds = {**NUSCENES.conditions, "weather": [*NUSCENES.conditions["weather"], "snow"]}
    kinds["city"] = sorted(names - {value for kind in ("weather", "light") for value in kinds[kind]})
    parse(["all"], taxonomy_of(kinds), WORLDS)
    page = (ROOT / "docs" / "own_data.md").read_text()
    files = dict(re.findall(r"```yaml\n# worlds/(\w+)\.yaml\n(.*?)```", page, re.DOTALL))
    assert [*files] == ["munich", "sleet", "winter"]
    taxonomy = taxonomy_of({"weather": ["sleet"], "season": ["winter"], "city": ["munich"]})
    (course,) = parse(["sleet-winter-munich"], taxonomy, Worlds(folder_of(tmp_path / "w", files)))
    assert (drawn(course).snow_cover, drawn(course).wet) == (0.1, 0.8)
    assert course.place.agents.cycles == 0.02
    found = every(NUSCENES)
    assert [phase.conditions for course in courses("all") for phase in course.phases] == found
    for kind in NUSCENES.conditions:  # and they are mixed
        assert {each[kind] for each in found[:6]} == {each[kind] for each in found}


@given(st.lists(st.integers(1, 4), max_size=4))
def test_all_is_every_combination_once(sizes: list[int]) -> None:
    conditions = {f"k{i}": [f"v{i}x{k}" for k in range(size)] for i, size in enumerate(sizes)}
    found = every(taxonomy_of(conditions))
    assert len({*found}) == len(found) == np.prod(sizes, dtype=int)
    assert all([*each] == [*conditions] for each in found)


SCENERY = ["turn left", "construction site", "bus", "truck with trailer", "motorcycle", "parked cars", "many peds"]


@pytest.mark.parametrize("road", ["bus", "construction", "parked", "left", "highway"])
def test_descriptions_are_read_back(tmp_path: Path, road: str) -> None:
    """Scenery that would be read as a condition is left out."""
    kinds = {"weather": ["clear", "rain"], "road": [road, "lane"], "light": ["day", "night"]}
    worlds = Worlds(folder_of(tmp_path / "w", {road: {"kind": "road"}, "lane": {"kind": "road"}}))
    for course in parse(["all", f"clear-lane-day/rain-{road}-night/clear-lane-day"], taxonomy_of(kinds), worlds):
        changes = [(0.75 + k, phase) for k, phase in enumerate(course.phases[1:])]
        parts = describe(course, changes, SCENERY).split("; from ")
        assert len(parts) == len(course.phases)
        for part, phase in zip(parts, course.phases, strict=True):
            assert conditions_of(part, course.place.location, course.taxonomy) == phase.conditions
        said = [word for word in SCENERY if road not in word.split() or phase.conditions["road"] == road]
        assert len(course.phases) > 1 or all(word in parts[0] for word in said)


AT = {"kind": "weather", "location": "sleet"}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"kind": "city"}, "kind: is city, but sleet is of the kind weather in the taxonomy"),
        ({"kind": "weather", "air": {"rain": [5, 2]}}, "air.rain: [5.0, 2.0] is no interval within 0 and 200"),
        ({"kind": "weather", "streets": {"speed": 9.0}}, "`streets` are a city's, whose file has a `location`"),
        ({"kind": "weather", "location": "munich"}, "location: is munich; it must begin with sleet"),
        (AT | {"streets": {"spacing": [70.0, 99.0]}}, "`spacing`: 70 m between col"),
        (AT | {"streets": {"parking": 2.0}}, "`parking` is 2 m wide"),
        ({"kind": "weather", "vegetation": {"leaves": ["green"]}}, "vegetation.leaves.0: "),
    ],
)
def test_a_wrong_file_is_named(own: Path, content: object, says: str) -> None:
    worlds = Worlds(folder_of(own, {"sleet": content}))
    with one_line_error(at=own / "sleet.yaml", says=says):
        parse(["sleet-summer-munich"], taxonomy_of(KINDS), worlds)


def test_courses_that_no_drive_can_take_are_refused(own: Path) -> None:
    folder_of(own, {"bavaria": {"kind": "state", "location": "bavaria"}, "rainy": {"kind": "weather"}})
    with one_line_error(at="'rainy'", says="weather rainy: it would be read as rain"):
        parse(["rainy"], taxonomy_of({"weather": ["rain", "rainy"]}), Worlds(own))
    two = taxonomy_of({"state": ["bavaria"], "city": ["munich"]})
    with one_line_error(says="both are cities, with a `location`"):
        parse(["bavaria-munich"], two, Worlds(own))
    with one_line_error(at="'clear-summer-munich/", says="stays in one city, with the same streets, houses, trees"):
        parse(["clear-summer-munich/clear-winter-munich"], taxonomy_of(KINDS), Worlds(own))
    (thaw,) = parse(["snow-frost-munich/clear-summer-munich"], taxonomy_of(KINDS), Worlds(own))
    assert drawn(thaw, 0).snow_cover > drawn(thaw, 1).snow_cover == 0
    with one_line_error(says="unknown condition 'snow-day-munich': write weather-season-city with one of clear, rain"):
        parse(["snow-day-munich"], taxonomy_of(KINDS), Worlds(own))


def test_the_command_names_the_file_to_add(tmp_path: Path, own: Path) -> None:
    taxonomy, none = taxonomy_of(KINDS | {"city": ["oslo"]}).model_dump(mode="json"), tmp_path / "none"
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(taxonomy, sort_keys=False))
    add = "oslo: there is no world file for this city; add one: "
    for options, says in (
        (("--worlds", own), f"{add}{own / 'oslo.yaml'}"),
        ((), f"{add}oslo.yaml in a folder, which --worlds names"),
        (("--worlds", none), f"{none}: no such folder"),
    ):
        given = ("--taxonomy", tmp_path / "own.yaml", "--conditions", "snow-winter-oslo", *options)
        assert says in refuses("simulate", tmp_path / "out", *given)
    assert not (tmp_path / "out").exists()
