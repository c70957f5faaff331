"""The simulated world, without sensors: its map is the devkit's, and its agents behave."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import shapely
from courses import courses
from nuscenes.map_expansion.map_api import NuScenesMap
from shapely.geometry import LineString, Point, Polygon
from shapely.ops import unary_union

from perception.simulate.agents import MOVING
from perception.simulate.city import City, build_city
from perception.simulate.nuscenes_writer import write_maps
from perception.simulate.parameters import Agents, Place, Streets
from perception.simulate.scenario import EGO_LENGTH, EGO_REAR, build_world
from perception.simulate.snapshot import Ground, Weather
from perception.simulate.world import World

CITIES = {name: courses(f"clear-day-{name}")[0].place for name in ("boston", "singapore")}
OWN = Place(  # by other numbers than those
    name="munich",
    location="munich-west",
    streets=Streets(columns=(2, 1, 2), rows=(2, 1, 2), spacing=(100.0, 130.0), lane_width=3.2, parking=2.5, speed=12.0),
    agents=Agents(traffic=0.03, cycles=0.2),
)
WORLDS = [*((place, seed) for place in CITIES.values() for seed in (0, 1)), (OWN, 0)]
DURATION = 8.0  # s
FOR_FEET = ("walkway", "ped_crossing", "carpark_area")  # people cross driveways, which are part of the car parks


@pytest.fixture(scope="module", params=WORLDS, ids=lambda each: f"{each[0].name}-{each[1]}")
def world(request: pytest.FixtureRequest) -> World:
    place, seed = request.param
    return build_world(place, Weather(), DURATION, np.random.default_rng([7, seed]))


@pytest.fixture(scope="module", params=CITIES)
def mapped(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[City, NuScenesMap]:
    """A city, and its map expansion as the devkit reads it."""
    city, root = build_city(CITIES[request.param]), tmp_path_factory.mktemp(request.param)
    write_maps(root, city)
    return city, NuScenesMap(str(root), city.place.location)


def footprints(world: World, time: float) -> list[Polygon]:
    """The boxes of all agents seen from above, and last that of the recording vehicle."""
    xy, yaw, _ = world.agents_at(time)
    pose = world.global_from_ego_at(time)
    heading = np.arctan2(pose[1, 0], pose[0, 0])
    boxes = [(*xy[n], yaw[n], agent.size[1], agent.size[0]) for n, agent in enumerate(world.agents)]
    middle = pose[:2, 3] + (EGO_LENGTH / 2 - EGO_REAR) * pose[:2, 0]
    polygons = []
    for x, y, angle, length, width in [*boxes, (*middle, heading, EGO_LENGTH, 1.75)]:
        local = np.array([[length, width], [-length, width], [-length, -width], [length, -width]]) / 2
        cos, sin = np.cos(angle), np.sin(angle)
        polygons.append(Polygon(local @ np.array([[cos, sin], [-sin, cos]]) + [x, y]))
    return polygons


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
        for agent, box in zip(world.agents, boxes, strict=False):
            if agent.category == "human.pedestrian.construction_worker" or agent.behaviour == "":
                assert road.contains(box.centroid), agent.category
            elif agent.category.startswith("human") or agent.behaviour == "riderless":
                assert feet.contains(box.centroid), agent.category
            elif agent.behaviour == "parked":
                assert road.contains(box) or parking.contains(box), agent.category
            else:
                assert road.contains(box), agent.category
        assert road.contains(boxes[-1])


def test_centres_are_on_the_layers_that_the_devkit_finds(mapped: tuple[City, NuScenesMap]) -> None:
    city, nusc_map = mapped
    world = build_world(city.place, Weather(), 2.0, np.random.default_rng(11))
    xy, _, _ = world.agents_at(1.0)
    checked = 0
    for n, agent in enumerate(world.agents[:60]):
        layers = nusc_map.layers_on_point(*xy[n], layer_names=["drivable_area", *FOR_FEET])
        if agent.behaviour in ("traffic", "ridden"):
            assert layers["drivable_area"]
        elif agent.behaviour == "walking" and not agent.category.endswith("worker"):
            assert any(layers[layer] for layer in FOR_FEET)
        checked += 1
    assert checked == 60


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
            assert left == world.city.plan.style.right_hand, agent.category
            seen += 1
    assert seen > 5


def test_motion_is_plausible(world: World) -> None:
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


def test_a_drive_is_busy_and_moves(world: World) -> None:
    recorded = (world.times >= 0) & (world.times <= DURATION)
    gaps = np.linalg.norm(world.xy - world.ego_xy[:, None], axis=2)[recorded]
    cars = np.array([agent.category == "vehicle.car" for agent in world.agents])
    assert 20 <= (gaps < 50).sum(axis=1).mean() <= 80
    assert (gaps[:, cars] < 50).sum(axis=1).mean() >= 8
    path = world.ego_xy[recorded]
    assert np.linalg.norm(np.diff(path, axis=0), axis=1).sum() > 2.5 * DURATION


def test_the_cities_differ() -> None:
    boston, singapore = (build_city(place) for place in CITIES.values())
    assert boston.plan.style.right_hand != singapore.plan.style.right_hand
    assert boston.plan.style.lane_width > singapore.plan.style.lane_width


def test_painted_ground_is_the_map_of_the_devkit(mapped: tuple[City, NuScenesMap]) -> None:
    city, nusc_map = mapped
    x, y = city.plan.to_global(city.plan.centre(1, 1))
    side, pixels = 120.0, 1200
    mask = nusc_map.get_map_mask(
        (x, y, side, side), 0.0, ["drivable_area", "walkway", "carpark_area"], (pixels, pixels)
    )
    # The devkit rounds corners to whole pixels, so that its pixels lie on whole coordinates.
    steps = np.arange(pixels) / pixels * side - side / 2
    grid = np.stack(np.meshgrid(x + steps, y + steps), axis=-1)
    kinds = city.ground.at(grid)
    painted = {
        0: [Ground.ROAD, Ground.MARKING, Ground.CROSSING, Ground.YELLOW],
        1: [Ground.WALKWAY],
        2: [Ground.CARPARK],
    }
    for layer, found in painted.items():
        ours, theirs = np.isin(kinds, found), mask[layer] > 0
        # Both draw polygons by whole cells of 0.1 m, so edges may differ by two of them, and nothing else.
        assert not cv2.erode((ours ^ theirs).astype(np.uint8), np.ones((3, 3))).any()
        if layer == 0:
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
            gap = np.linalg.norm(points[-1] - np.array(curves[other])[0, :2])
            assert gap < 1.1
            assert lane["token"] in nusc_map.get_incoming_lane_ids(other)


def test_maps_can_be_drawn_in_every_layer(mapped: tuple[City, NuScenesMap]) -> None:
    city, nusc_map = mapped
    x, y = city.plan.canvas[0] / 2, city.plan.canvas[1] / 2
    for angle in (0.0, 33.0):
        mask = nusc_map.get_map_mask((x, y, 400, 400), angle, nusc_map.non_geometric_layers, (800, 800))
        drawn = mask.reshape(len(mask), -1).any(axis=1)
        layers = [layer for layer in nusc_map.non_geometric_layers if layer != "traffic_light"]  # never drawn
        assert [layer for layer, there in zip(layers, drawn, strict=True) if not there] == []
