"""nuScenes: frames, boxes, classes of points and voxels of its tables, and its maps, as the devkit and Occ3D have them
or by hand; positions are the devkit's."""

import os
import pickle
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from annotated_tiny import VERSION, labels_of, voxels_of, write_annotated
from commands import one_line_error
from hypothesis import given
from hypothesis import strategies as st
from maps import MapWriter
from nuscenes import NuScenes
from nuscenes.eval.detection.utils import category_to_detection_name
from nuscenes.map_expansion.map_api import NuScenesMap
from nuscenes.scripts import export_poses
from nuscenes.utils.data_classes import Box as DevkitBox
from nuscenes.utils.data_classes import LidarPointCloud
from nuscenes.utils.data_io import load_bin_file
from nuscenes.utils.geometry_utils import BoxVisibility, view_points
from nuscenes.utils.splits import create_splits_scenes
from tiny import token
from vocabulary import ATTRIBUTES, CAMERAS, CLASSES, MAP_CLASSES, NUSCENES, RIG

from perception.config import Augment
from perception.datasets.keyframes import Reads
from perception.datasets.nuscenes.dataset import NuScenesTables, official_splits
from perception.datasets.nuscenes.descriptions import conditions_of, position_on_map
from perception.datasets.nuscenes.map_expansion import MapExpansion
from perception.datasets.sources import JoinedTables
from perception.datasets.sweeps import Sweep, join_lidars
from perception.errors import InputError
from perception.frame import Conditions, Frame
from perception.grid import BevGrid, VoxelGrid, occupancy_classes
from perception.rig import Box
from perception.taxonomy import load_taxonomy
from perception.training.augment import draw_similarity


@dataclass(frozen=True)
class Oracle:
    """Our tables beside the devkit's, and the keyframes that have a LiDAR file."""

    tables: NuScenesTables
    devkit: NuScenes
    complete: list[str]

    def boxes(self, sample: str, channel: str) -> list[DevkitBox]:
        """The devkit's boxes of the ten classes in a sensor's own frame, seen or not."""
        data = self.devkit.get("sample", sample)["data"][channel]
        boxes = self.devkit.get_sample_data(data, box_vis_level=BoxVisibility.NONE)[1]
        return [box for box in boxes if category_to_detection_name(box.name)]


@pytest.fixture(scope="module")
def oracle(keyframes: tuple[Path, str]) -> Oracle:
    root, version = keyframes
    tables, devkit = NuScenesTables(root, version), NuScenes(version, str(root), verbose=False)

    def has_lidar(sample: str) -> bool:
        return Path(devkit.get_sample_data_path(devkit.get("sample", sample)["data"]["LIDAR_TOP"])).exists()

    return Oracle(tables, devkit, [sample for sample in tables.samples() if has_lidar(sample)])


def test_annotations_equal_the_devkits(oracle: Oracle) -> None:
    seen = 0
    for sample in oracle.tables.samples():
        boxes, anns = oracle.tables.recording(sample).annotated("boxes"), oracle.devkit.get("sample", sample)["anns"]
        rows = [oracle.devkit.get("sample_annotation", annotation) for annotation in anns]
        ours = [row for row in rows if category_to_detection_name(row["category_name"])]
        assert len(boxes) == len(ours)
        for i, row in enumerate(ours):
            box = oracle.devkit.get_box(row["token"])
            np.testing.assert_allclose(boxes.centers[i], box.center, atol=1e-12)
            np.testing.assert_allclose(boxes.sizes[i], box.wlh, atol=1e-12)
            np.testing.assert_allclose(boxes.rotations[i], box.rotation_matrix, atol=1e-12)
            np.testing.assert_array_equal(boxes.velocities[i], oracle.devkit.box_velocity(row["token"]))
            assert CLASSES[boxes.labels[i]] == category_to_detection_name(row["category_name"])
            assert boxes.num_points[i] == row["num_lidar_pts"] + row["num_radar_pts"]
            assert boxes.instances[i] == row["instance_token"]
            names = [oracle.devkit.get("attribute", a)["name"] for a in row["attribute_tokens"]]
            assert [ATTRIBUTES[a] for a in boxes.attributes[i : i + 1] if a >= 0] == names
            seen += 1
        others = [row["instance_token"] for row in rows if row not in ours]
        assert oracle.tables.recording(sample).annotated("obstacles").instances.tolist() == others
    assert seen > 20
    for record in oracle.devkit.scene:  # samples are in order of time
        expected, sample = [], record["first_sample_token"]
        while sample:
            expected.append(sample)
            sample = oracle.devkit.get("sample", sample)["next"]
        assert oracle.tables.samples(None, [record["name"]]) == expected


def test_projected_boxes_equal_the_devkits(oracle: Oracle) -> None:
    seen = 0
    for sample in oracle.complete:
        frame = oracle.tables.frame(sample, Reads("lidar"))
        corners = frame.boxes.corners()
        for name in frame.cameras:
            homogeneous = np.concatenate([corners, np.ones((*corners.shape[:2], 1))], axis=-1)
            projected = homogeneous @ frame.image_from_reference(name).T
            for ours, box in zip(projected, oracle.boxes(sample, name), strict=True):
                front = box.corners()[2] > 0.5
                pixels = view_points(box.corners(), frame.cameras[name].intrinsics, normalize=True)[:2].T
                np.testing.assert_allclose(ours[front, 2], box.corners()[2, front], atol=1e-9)
                np.testing.assert_allclose((ours[:, :2] / ours[:, 2:])[front], pixels[front], atol=1e-6)
                seen += front.sum()
    assert seen > 100


def test_sweeps_and_boxes_equal_the_devkits(oracle: Oracle) -> None:
    """In the LiDAR's frame; in the vehicle's they are at the same places."""
    lags = set()
    for sample in oracle.complete:
        frame = oracle.tables.frame(sample, Reads("lidar", sweeps=10, cameras=False))
        theirs = oracle.boxes(sample, "LIDAR_TOP")
        np.testing.assert_allclose(frame.boxes.corners(), [box.corners().T for box in theirs], atol=1e-9)
        record, ours = oracle.devkit.get("sample", sample), frame.points
        cloud, times = LidarPointCloud.from_file_multisweep(oracle.devkit, record, "LIDAR_TOP", "LIDAR_TOP", nsweeps=11)
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours[:, :3], cloud.points[:3].T, atol=1e-4)
        np.testing.assert_array_equal(ours[:, 3], cloud.points[3])
        np.testing.assert_allclose(ours[:, 4], times[0], atol=1e-6)
        lags.update(np.unique(ours[:, 4]))
        ego = oracle.tables.frame(sample, Reads("ego", sweeps=10, cameras=False))
        ego_from_lidar = np.linalg.inv(ego.global_from_reference) @ frame.global_from_reference
        moved = ours[:, :3] @ ego_from_lidar[:3, :3].T + ego_from_lidar[:3, 3]
        np.testing.assert_allclose(ego.points[:, :3], moved, atol=1e-4)
        np.testing.assert_array_equal(ego.global_from_ego, ego.global_from_reference)
    assert min(lags) == 0
    assert len(lags) >= 3


def test_splits_and_selectors_are_the_devkits(nuscenes_root: Path) -> None:
    assert official_splits() == create_splits_scenes()
    tables = NuScenesTables(nuscenes_root, "v1.0-mini")
    assert tables.scenes("mini_val") == create_splits_scenes()["mini_val"] == tables.scenes()
    assert len(tables.samples("mini_val")) == 81
    chosen = tables.samples("all", ["scene-0916", "scene-0103:0-4"])
    assert chosen == [*tables.samples(None, ["scene-0916"]), *tables.samples()[:4]]
    with pytest.raises(InputError, match=r"no scene of split mini_train is here; it has scene-0103, scene-0916"):
        tables.samples("mini_train")


def test_missing_files_are_missing_sensors(tiny_root: Path) -> None:
    tables = NuScenesTables(tiny_root, VERSION)
    sample = tables.samples()[2]
    whole, keyframe = tables.frame(sample, Reads(sweeps=10)), tables.recordings[sample]
    assert ({*whole.cameras}, whole.location) == ({*CAMERAS}, "boston-seaport")
    assert whole.conditions == Conditions(weather="rain", light="night", city="boston")
    np.testing.assert_allclose(np.unique(whole.points[:, 4]), [0, 0.25, 0.5, 0.75, 1.0, 1.25], atol=1e-6)
    _, sweep = tables.recordings.chain(keyframe["LIDAR_TOP"], 1)
    (tiny_root / sweep.file).unlink()
    (tiny_root / keyframe["CAM_BACK"].file).unlink()
    frame = tables.frame(sample, Reads(sweeps=10))
    assert set(whole.cameras) - set(frame.cameras) == {"CAM_BACK"}
    np.testing.assert_array_equal(frame.points, whole.points[whole.points[:, 4] != np.float32(0.25)])
    (tiny_root / keyframe["LIDAR_TOP"].file).unlink()
    assert tables.frame(sample, Reads(sweeps=10)).points is None
    for file in (tiny_root / "samples" / "CAM_FRONT").iterdir():
        os.truncate(file, 5)  # of a sensor that nobody asks for
    frame = tables.frame(sample, Reads(lidar=False, cameras=False, annotations=False))
    assert (frame.points, frame.boxes, frame.cameras) == (None, None, {})


@pytest.mark.parametrize(
    ("description", "location", "expected"),
    [
        ("Night, after rain, many peds", "singapore-hollandvillage", ("rain", "night", "singapore")),
        ("Parked cars, train crossing, terrain", "boston-seaport", ("clear", "day", "boston")),
        ("Rain; heavy fog", "singapore-onenorth", ("rain", "day", "singapore")),
        ("foggy night", "somewhere", ("fog", "night", None)),
        ("", "boston-seaport", (None, None, "boston")),
    ],
)
def test_conditions(description: str, location: str, expected: tuple[str | None, ...]) -> None:
    known = dict(zip(("weather", "light", "city"), expected, strict=True))
    assert conditions_of(description, location, NUSCENES) == Conditions(**known)


def opened(root: Path, joined: bool) -> NuScenesTables | JoinedTables:
    """The tables, alone or as one of the drives of a folder."""
    return JoinedTables(root.parent, VERSION, RIG, NUSCENES) if joined else NuScenesTables(root, VERSION)


@pytest.mark.parametrize("joined", [False, True])
def test_annotations_beside_boxes_are_those_of_the_files(tmp_path: Path, joined: bool) -> None:
    """Obstacles, of no class; voxels by z y x; classes of the points that the frame keeps, in its order, where those of
    an earlier sweep have none."""
    root = write_annotated(tmp_path / "tiny")
    own, tables = NuScenesTables(root, VERSION), opened(root, joined)
    for sample in tables.samples():
        rack = tables.recording(sample).annotated("obstacles")
        assert (rack.instances.tolist(), rack.labels.tolist()) == ([token("instance", "rack")], [-1])
        np.testing.assert_allclose(rack.centers, [[105, 42, 1]])
        np.testing.assert_allclose(rack.velocities, [[0, 0, 0]], atol=1e-12)
        objects = [token("instance", name) for name in ("car", "walker")]
        assert tables.recording(sample).annotated("boxes").instances.tolist() == objects

    first, second, third = tables.samples()
    assert [tables.recording(sample).exists("occupancy") for sample in tables.samples()] == [True, False, False]
    assert tables.recording(second).annotated("occupancy") is None
    found = tables.recording(first).annotated("occupancy")
    assert found.grid == VoxelGrid()
    assert occupancy_classes(NUSCENES)[17] == "free"
    with np.load(voxels_of(root)) as file:
        np.testing.assert_array_equal(found.classes, file["semantics"].transpose(2, 1, 0))
        np.testing.assert_array_equal(found.seen_by_lidar, file["mask_lidar"].transpose(2, 1, 0) == 1)
        np.testing.assert_array_equal(found.seen_by_cameras, file["mask_camera"].transpose(2, 1, 0) == 1)
    assert (found.seen_by_lidar.dtype, found.classes.dtype) == (np.dtype(bool), np.dtype(np.uint8))

    names = [each.name for each in NUSCENES.point_classes]
    expected = {0: -1, 17: names.index("car"), 2: names.index("pedestrian"), 13: -1}
    assert [tables.recording(sample).exists("points") for sample in tables.samples()] == [True, True, False]
    for k, sample in enumerate((first, second)):
        frame = tables.frame(sample, Reads("lidar", sweeps=2, cameras=False))
        file = next(each.file for each in own.recordings[sample].values() if "LIDAR" in each.file)
        intensities = np.fromfile(root / file, np.float32).reshape(-1, 5)[:, 3]  # no two are the same
        numbers = load_bin_file(str(labels_of(root, k)))
        class_of = {i: expected[n] for i, n in zip(intensities.tolist(), numbers.tolist(), strict=True)}
        assert frame.class_of_point.dtype == np.int16
        at_once = frame.points[:, 4] == 0
        assert 400 < at_once.sum() < 450  # the roof's are left out
        labels = frame.class_of_point[at_once].tolist()
        assert labels == [class_of[intensity] for intensity in frame.points[at_once, 3].tolist()]
        assert {*labels} == {-1, names.index("car"), names.index("pedestrian")}
        assert (frame.class_of_point[~at_once] == -1).all()
    assert tables.frame(third).class_of_point is None
    assert tables.frame(first, Reads(annotations=False)).class_of_point is None
    others = NuScenesTables(root, VERSION, taxonomy=load_taxonomy("pandaset"))  # none of its categories
    assert not others.recording(first).exists("points")
    assert others.frame(first).class_of_point is None


@pytest.mark.parametrize("joined", [False, True])
def test_truth_is_read_with_the_frame_and_stays(tmp_path: Path, joined: bool) -> None:
    """Of the kinds that are asked for; a corruption takes the LiDAR away, and the data set is gone when it is used."""
    root = write_annotated(tmp_path / "tiny")
    tables, first = opened(root, joined), token("sample", 0)
    recording, plain = tables.recording(first), tables.frame(first, Reads(sweeps=2))
    expected = {kind: recording.annotated(kind) for kind in ("boxes", "obstacles", "bicycle_racks", "occupancy")}
    path = [tables.frame(each, Reads("lidar")).global_from_reference[:3, 3] for each in tables.samples()]
    expected["lidar_path"] = np.array(path)
    reads = Reads(sweeps=2, annotations=False, truth=(*expected, "points", "map", "of another data set"))
    frame = tables.frame(first, reads._replace(change=Frame.without_points))
    shutil.rmtree(root)
    assert frame.points is frame.class_of_point is None
    points, classes = frame.truth["points"]
    np.testing.assert_array_equal(points, plain.keyframe_points)
    np.testing.assert_array_equal(classes, plain.keyframe_classes)
    assert {*frame.truth} == {*expected, "points"}  # there is no map
    for kind in ("boxes", "obstacles", "occupancy"):
        for name, value in vars(expected[kind]).items():
            np.testing.assert_array_equal(getattr(frame.truth[kind], name), value)
    assert frame.truth["bicycle_racks"] == expected["bicycle_racks"]
    np.testing.assert_array_equal(frame.truth["lidar_path"], expected["lidar_path"])


def test_truth_that_is_not_asked_for_is_not_read_nor_what_is_not_there(tmp_path: Path) -> None:
    """Without the table of the classes of points, the folder that is left does not matter."""
    root, first = write_annotated(tmp_path / "tiny"), token("sample", 0)
    voxels_of(root).write_bytes(b"")
    labels_of(root, 0).unlink()
    tables = NuScenesTables(root, VERSION)
    kinds = ("boxes", "lidar_path")
    assert {*tables.frame(first, Reads(annotations=False, truth=kinds)).truth} == {*kinds}
    for kind, says in (("occupancy", "labels.npz"), ("points", "classes of points")):
        with one_line_error(says=says):
            tables.frame(first, Reads(annotations=False, truth=(kind,)))
    (root / VERSION / "lidarseg.json").unlink()
    shutil.rmtree(root / "gts")
    (root / VERSION / "sample_annotation.json").write_text("[]")
    tables = NuScenesTables(root, VERSION)
    assert [tables.recording(first).exists(kind) for kind in ("points", "occupancy")] == [False, False]
    assert tables.frame(first).class_of_point is tables.recording(first).annotated("obstacles") is None


def test_classes_stay_with_the_points_of_joined_lidars() -> None:
    """Sorted by time, without those of the own vehicle; a LiDAR without annotations has none."""
    rng, own = np.random.default_rng(2), Box(center=(0.0, 0.0, 0.0), size=(8.0, 8.0, 8.0))

    def swept(timestamp: int, annotated: bool) -> Sweep:
        points = np.column_stack([rng.uniform(-9, 9, (300, 3)), rng.integers(0, 16, 300), np.zeros(300)])
        points = points.astype(np.float32)
        classes = points[:, 3].astype(np.int16) if annotated else None  # the intensity is the class
        return Sweep(points, timestamp, np.eye(4), np.eye(4), classes=classes)

    sweeps = {0: [swept(1000, True), swept(500, False)], 1: [swept(1010, True)], 2: [swept(990, False)]}
    points, numbers, lidars, classes = join_lidars(sweeps, 1000, np.eye(4), own)
    np.testing.assert_array_equal(numbers, points[:, 4] > 4e-4)
    assert (np.diff(points[:, 4]) >= 0).all()
    with_classes = (lidars == 1) | ((lidars == 0) & (points[:, 4] < 1e-5))
    assert 300 < with_classes.sum() < 600
    np.testing.assert_array_equal(classes, np.where(with_classes, points[:, 3], -1))
    single = join_lidars({0: sweeps[0]}, 1000, np.eye(4), own)
    assert single.lidar_of_point is None
    np.testing.assert_array_equal(single.class_of_point, np.where(single.points[:, 4] < 1e-5, single.points[:, 3], -1))
    assert join_lidars({0: sweeps[0][1:]}, 1000, np.eye(4), own).class_of_point is None


# Its maps.

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
    outlines = {}
    for each in layers["polygon"]:
        rings = (each["exterior_node_tokens"], *(hole["node_tokens"] for hole in each["holes"]))
        outer, *holes = ([nodes[name] for name in ring] for ring in rings)
        outlines[each["token"]] = shapely.Polygon(outer, holes)
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
        frame = frame.transformed(similarity)
    masks = area.rasterize(frame, grid)
    assert (masks.shape, masks.dtype) == ((6, *grid.shape), np.uint8)
    places = _global_centers(frame, grid)
    for mask, layer in zip(masks, AREAS, strict=False):
        expected = shapely.contains_xy(_shape(writer.layers, layer), places[..., 0], places[..., 1])
        np.testing.assert_array_equal(mask, expected)
        assert mask.any()


@pytest.mark.parametrize("yaw", [0.0, 0.7, -2.0])
@pytest.mark.parametrize("cells", [300, 150])
def test_dividers_equal_the_devkits(tmp_path: Path, yaw: float, cells: int) -> None:
    grid = BevGrid(x=(-75.0, 75.0), y=(-75.0, 75.0), cell=150 / cells)
    ours = _street().write(tmp_path).rasterize(_frame(yaw=yaw), grid)[5]
    devkit = NuScenesMap(str(tmp_path), "boston-seaport")
    layers = ["road_divider", "lane_divider"]
    theirs = devkit.get_map_mask((300.0, 300.0, 150.0, 150.0), float(np.rad2deg(yaw)), layers, grid.shape)
    np.testing.assert_array_equal(ours, theirs.max(axis=0))


def test_the_map_follows_a_tilted_vehicle_its_height_and_the_reference(tmp_path: Path) -> None:
    area, grid = _street().write(tmp_path), BevGrid()
    level, ego = _frame(height=20.0), _frame()
    tilted = level.global_from_ego.copy()
    tilted[:3, :3] = tilted[:3, :3] @ [[np.cos(0.02), 0, np.sin(0.02)], [0, 1, 0], [-np.sin(0.02), 0, np.cos(0.02)]]
    frame = replace(level, global_from_reference=tilted, global_from_ego=tilted)
    assert (area.rasterize(frame, grid) != area.rasterize(level, grid)).mean() < 2e-3
    np.testing.assert_array_equal(area.rasterize(level, grid), area.rasterize(ego, grid))
    mount = np.eye(4)
    mount[:2, :2], mount[2, 3] = [[0, 1], [-1, 0]], 1.84  # the LiDAR's x points right, its y forward
    lidar = replace(ego, reference="lidar", global_from_reference=ego.global_from_ego @ mount)
    seen = area.rasterize(lidar, BevGrid(reference="lidar"))
    # forward is x for ego and y for the LiDAR; left is y for ego and -x for the LiDAR
    turned = area.rasterize(ego, grid).transpose(0, 2, 1)[:, :, ::-1]
    np.testing.assert_array_equal(seen[:5], turned[:5])
    assert not area.rasterize(_frame(x=5000, y=-300), grid).any()


def test_a_location_without_a_map_and_a_damaged_one(tmp_path: Path) -> None:
    assert MapExpansion.load(tmp_path, "boston-seaport", NUSCENES.map_layers) is None
    writer = _street()
    writer.layers["node"].pop(0)
    with one_line_error(r"boston-seaport.json: not a map .*KeyError: 'node0'"):
        writer.write(tmp_path)


def test_a_map_goes_to_another_process_by_its_name(tmp_path: Path) -> None:
    """Another content of the file is another map."""
    area, frame, grid = _street().write(tmp_path), _frame(), BevGrid()
    sent = pickle.dumps(area)
    assert b"starts" not in sent  # of the edges
    np.testing.assert_array_equal(pickle.loads(sent).rasterize(frame, grid), area.rasterize(frame, grid))
    other = MapWriter()
    other.area("walkway", other.polygon([(290.0, 290.0), (310.0, 290.0), (310.0, 310.0), (290.0, 310.0)]))
    assert not other.write(tmp_path).rasterize(frame, grid)[0].any()


@given(st.sampled_from(LOCATIONS), st.floats(-5000, 5000), st.floats(-5000, 5000))
def test_positions_are_the_devkits_and_metres_from_the_origin(location: str, x: float, y: float) -> None:
    """Also south and west of the origin, where the devkit's formula does not hold; elsewhere none is known."""
    assert position_on_map("", np.eye(4)) is position_on_map("munich-north", np.eye(4)) is None
    latitude, longitude = export_poses.REFERENCE_COORDINATES[location]
    found = position_on_map(location, _frame(x, y).global_from_ego)
    metres = np.radians(1) * export_poses.EARTH_RADIUS_METERS
    east = (found[1] - longitude) * metres * np.cos(np.radians((found[0] + latitude) / 2))
    assert (east, (found[0] - latitude) * metres) == pytest.approx((x, y), abs=5)  # of 7 km, on a sphere
    x, y = abs(x), max(abs(y), 1)
    (theirs,) = export_poses.derive_latlon(location, [{"timestamp": 0, "translation": [x, y, 0.0]}])
    ours = position_on_map(location, _frame(x, y).global_from_ego)
    assert ours == pytest.approx((theirs["latitude"], theirs["longitude"]), abs=1e-11)
