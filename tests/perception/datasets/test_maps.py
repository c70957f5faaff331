"""Maps of nuScenes: labels against point-in-polygon tests and the devkit's masks; positions are the devkit's."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from commands import one_line_error
from hypothesis import given
from hypothesis import strategies as st
from maps import MapWriter
from nuscenes.map_expansion.map_api import NuScenesMap
from nuscenes.scripts import export_poses
from vocabulary import MAP_CLASSES, NUSCENES

from perception.config import Augment
from perception.datasets.nuscenes import map_expansion
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.datasets.nuscenes.georeference import position_on_map
from perception.datasets.nuscenes.map_expansion import MapExpansion
from perception.frame import Frame
from perception.grid import BevGrid
from perception.training.augment import draw_similarity, transformed

LOCATIONS = sorted(export_poses.REFERENCE_COORDINATES)
AREAS = MAP_CLASSES[:5]


def _street() -> MapWriter:
    """Roads with an island, an overlapping second road, crossings, and dividers, around (300, 300)."""
    m = MapWriter()
    road = [(200.0, 290.0), (420.0, 293.0), (421.0, 310.5), (330.0, 312.0), (200.0, 308.0)]
    island = [(305.0, 297.0), (315.0, 297.0), (315.0, 303.0), (305.0, 303.0)]
    side = [(310.0, 240.0), (310.0, 360.0), (318.0, 360.0), (318.0, 240.0)]  # runs clockwise
    m.area("drivable_area", m.polygon(road, island), m.polygon(side))
    m.area("ped_crossing", m.polygon([(285.0, 289.0), (289.0, 289.5), (288.5, 309.0), (284.5, 308.0)]))
    m.area("walkway", m.polygon([(200.0, 309.0), (300.0, 312.0), (300.0, 318.0), (200.0, 315.0)]))
    m.area("walkway", m.polygon([(280.0, 280.0), (300.0, 280.0), (290.0, 270.0)]))
    m.area("stop_line", m.polygon([(283.0, 291.0), (284.0, 291.0), (284.0, 300.0), (283.0, 300.0)]))
    m.area("carpark_area", m.polygon([(320.0, 320.0), (400.0, 320.0), (400.0, 390.0), (320.0, 340.0)]))
    m.divider("road_divider", [(240.0, 299.0), (300.0, 301.0), (359.0, 302.0)])
    m.divider("lane_divider", [(312.0, 260.0), (314.0, 280.0)])
    return m


def _frame(x: float = 300, y: float = 300, yaw: float = 0.4, height: float = 0.0) -> Frame:
    pose = np.eye(4)
    pose[:2, :2] = [[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]]
    pose[:3, 3] = (x, y, height)
    return Frame("t", 0, "ego", pose, pose, None, {})


def _shape(layers: dict[str, Any], layer: str) -> shapely.Geometry:
    nodes = {n["token"]: (n["x"], n["y"]) for n in layers["node"]}
    outlines = {
        p["token"]: shapely.Polygon(
            [nodes[t] for t in p["exterior_node_tokens"]],
            [[nodes[t] for t in hole["node_tokens"]] for hole in p["holes"]],
        )
        for p in layers["polygon"]
    }
    records = layers[layer]
    return shapely.union_all([outlines[t] for r in records for t in r.get("polygon_tokens") or [r["polygon_token"]]])


def _global_centers(frame: Frame, grid: BevGrid) -> np.ndarray:
    """(rows, columns, 2) global x and y of the middles of cells, on the ground."""
    centers = grid.centers().astype(np.float64)
    places = np.concatenate([centers, np.zeros((*grid.shape, 1)), np.ones((*grid.shape, 1))], axis=-1)
    return (places @ frame.global_from_reference.T)[..., :2]


@pytest.mark.parametrize("seed", [None, *range(6)])
@pytest.mark.parametrize("cell", [0.8, 0.5])
def test_areas_equal_point_in_polygon_tests(tmp_path: Path, seed: int | None, cell: float) -> None:
    writer = _street()
    area, grid, frame = writer.write(tmp_path), BevGrid(cell=cell, x=(-40.0, 56.0)), _frame()
    if seed is not None:  # mirrored, turned, scaled and shifted; the ground stays the plane z = 0
        similarity = draw_similarity(np.random.default_rng(seed), Augment(rotation=3, scale=0.2, translation=4))
        similarity[2, 3] = 0
        frame = transformed(frame, similarity)
    masks = area.rasterize(frame, grid)
    assert masks.shape == (6, *grid.shape)
    assert masks.dtype == np.uint8
    places = _global_centers(frame, grid)
    for mask, layer in zip(masks, AREAS, strict=False):
        expected = shapely.contains_xy(_shape(writer.layers, layer), places[..., 0], places[..., 1])
        np.testing.assert_array_equal(mask, expected)
        assert mask.any()


def test_simulated_maps_agree_with_the_devkits(sim_root: Path) -> None:
    """The devkit rounds corners to whole cells and fills the outline too: near outlines one cell is its error."""
    tables, grid = NuScenesTables(sim_root, "v1.0-sim"), BevGrid(x=(-50.0, 50.0), y=(-50.0, 50.0), cell=0.5)
    for scene in tables.scenes():
        frame = tables.frame(tables.samples(None, [scene])[0], lidar=False, cameras=False)
        ours = MapExpansion.load(sim_root, frame.location, NUSCENES.map_layers).rasterize(frame, grid)
        pose = frame.global_from_ego
        patch, degrees = (*pose[:2, 3], 100.0, 100.0), float(np.rad2deg(np.arctan2(pose[1, 0], pose[0, 0])))
        theirs = NuScenesMap(str(sim_root), frame.location).get_map_mask(patch, degrees, list(AREAS), grid.shape)
        layers = json.loads((sim_root / "maps" / "expansion" / f"{frame.location}.json").read_text())
        places = shapely.points(_global_centers(frame, grid))
        for name, mask, expected in zip(AREAS, ours, theirs, strict=False):
            sure = shapely.distance(_shape(layers, name).boundary, places) > 2 * grid.cell
            np.testing.assert_array_equal(mask[sure], expected[sure])
            assert (mask != expected).mean() < 0.02
        assert ours[0].any()
        assert ours[5].any()


@pytest.mark.parametrize("yaw", [0.0, 0.7, -2.0])
@pytest.mark.parametrize("cells", [300, 150])
def test_dividers_equal_the_devkits(tmp_path: Path, yaw: float, cells: int) -> None:
    grid = BevGrid(x=(-75.0, 75.0), y=(-75.0, 75.0), cell=150 / cells)
    ours = _street().write(tmp_path).rasterize(_frame(yaw=yaw), grid)[5]
    devkit = NuScenesMap(str(tmp_path), "boston-seaport")
    layers = ["road_divider", "lane_divider"]
    theirs = devkit.get_map_mask((300.0, 300.0, 150.0, 150.0), float(np.rad2deg(yaw)), layers, grid.shape)
    np.testing.assert_array_equal(ours, theirs.max(axis=0))


def test_the_map_follows_the_height_of_a_tilted_vehicle(tmp_path: Path) -> None:
    area, grid = _street().write(tmp_path), BevGrid()
    level = _frame(height=20.0)
    tilted = level.global_from_ego.copy()
    tilted[:3, :3] = tilted[:3, :3] @ [[np.cos(0.02), 0, np.sin(0.02)], [0, 1, 0], [-np.sin(0.02), 0, np.cos(0.02)]]
    frame = replace(level, global_from_reference=tilted, global_from_ego=tilted)
    assert (area.rasterize(frame, grid) != area.rasterize(level, grid)).mean() < 2e-3
    np.testing.assert_array_equal(area.rasterize(level, grid), area.rasterize(_frame(), grid))


def test_the_lidar_reference_sees_the_same_ground(tmp_path: Path) -> None:
    area = _street().write(tmp_path)
    ego = _frame()
    mount = np.eye(4)
    mount[:2, :2], mount[2, 3] = [[0, 1], [-1, 0]], 1.84  # the LiDAR's x points right, its y forward
    lidar = replace(ego, reference="lidar", global_from_reference=ego.global_from_ego @ mount)
    seen = area.rasterize(lidar, BevGrid(reference="lidar"))
    # forward is x for ego and y for the LiDAR; left is y for ego and -x for the LiDAR
    turned = area.rasterize(ego, BevGrid()).transpose(0, 2, 1)[:, :, ::-1]
    np.testing.assert_array_equal(seen[:5], turned[:5])
    assert not area.rasterize(_frame(x=5000, y=-300), BevGrid()).any()


def test_a_location_without_a_map_and_a_damaged_one(tmp_path: Path) -> None:
    assert MapExpansion.load(tmp_path, "boston-seaport", NUSCENES.map_layers) is None
    writer = _street()
    writer.layers["node"].pop(0)
    with one_line_error(r"boston-seaport.json: not a map .*KeyError: 'node0'"):
        writer.write(tmp_path)


def test_what_is_far_from_the_vehicle_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A city of 4 square kilometres is drawn with as many points as what of it lies around the vehicle."""
    rng, grid = np.random.default_rng(0), BevGrid(cell=0.8)
    angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    places = {layer: rng.uniform(0, 2000, (400, 2)) for layer in AREAS}
    lines = rng.uniform(0, 2000, (1000, 2))
    transformed: list[int] = []
    apply = map_expansion._apply
    monkeypatch.setattr(
        map_expansion, "_apply", lambda affine, points: transformed.append(len(points)) or apply(affine, points)
    )
    drawn, points = {}, {}
    for reach in (120, 2000):  # m around the vehicle; the grid reaches 73 m, an area or a line 32 m
        writer = MapWriter()
        for layer in AREAS:
            for x, y in places[layer][np.abs(places[layer] - 1000).max(axis=1) < reach]:
                ring = np.c_[x + 20 * np.cos(angles), y + 15 * np.sin(angles)]
                writer.area(layer, writer.polygon([tuple(p) for p in ring]))
        for x, y in lines[np.abs(lines - 1000).max(axis=1) < reach]:
            writer.divider("lane_divider", [(x + 5 * i, y + i * i) for i in range(6)])
        area = writer.write(tmp_path)
        transformed.clear()
        drawn[reach], points[reach] = area.rasterize(_frame(x=1000, y=1000), grid), sum(transformed)
    np.testing.assert_array_equal(drawn[2000], drawn[120])
    assert points[2000] == points[120] > 0


def pose_at(x: float, y: float) -> np.ndarray:
    pose = np.eye(4)
    pose[:2, 3] = x, y
    return pose


@given(st.sampled_from(LOCATIONS), st.floats(0, 5000), st.floats(1, 5000))
def test_positions_are_the_devkits(location: str, x: float, y: float) -> None:
    (theirs,) = export_poses.derive_latlon(location, [{"timestamp": 0, "translation": [x, y, 0.0]}])
    ours = position_on_map(location, pose_at(x, y))
    assert ours == pytest.approx((theirs["latitude"], theirs["longitude"]), abs=1e-11)


@given(st.sampled_from(LOCATIONS), st.floats(-5000, 5000), st.floats(-5000, 5000))
def test_in_any_direction_it_is_metres_from_the_origin(location: str, x: float, y: float) -> None:
    """Also south and west of the origin, where the devkit's formula does not hold."""
    latitude, longitude = export_poses.REFERENCE_COORDINATES[location]
    found = position_on_map(location, pose_at(x, y))
    assert found is not None
    metres = np.radians(1) * export_poses.EARTH_RADIUS_METERS
    east = (found[1] - longitude) * metres * np.cos(np.radians((found[0] + latitude) / 2))
    assert (east, (found[0] - latitude) * metres) == pytest.approx((x, y), abs=5)  # of 7 km, on a sphere


def test_positions_of_real_keyframes(nuscenes_root: Path) -> None:
    assert position_on_map("", np.eye(4)) is position_on_map("munich-north", np.eye(4)) is None
    tables = NuScenesTables(nuscenes_root, "v1.0-mini")
    for scene, latitude, longitude in (("scene-0103", 42.35, -71.05), ("scene-0916", 1.29, 103.78)):
        for token in tables.samples(selectors=[scene])[::20]:
            frame = tables.frame(token, lidar=False, cameras=False)
            assert frame.position == pytest.approx((latitude, longitude), abs=0.02)
            assert frame.position == position_on_map(frame.location, frame.global_from_ego)
