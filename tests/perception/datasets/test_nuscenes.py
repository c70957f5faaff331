"""Frames, boxes, classes of points and voxels of nuScenes' tables: as the devkit and Occ3D have them, and by hand."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from annotated_tiny import VERSION, labels_of, voxels_of, write_annotated
from nuscenes import NuScenes
from nuscenes.eval.detection.utils import category_to_detection_name
from nuscenes.utils.data_classes import Box as DevkitBox
from nuscenes.utils.data_classes import LidarPointCloud
from nuscenes.utils.data_io import load_bin_file
from nuscenes.utils.geometry_utils import BoxVisibility, view_points
from nuscenes.utils.splits import create_splits_scenes
from ten_sweeps import SWEEPS, drive
from tiny import token
from vocabulary import ATTRIBUTES, CAMERAS, CLASSES, NUSCENES, RIG

from perception.datasets.files import read_points
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.datasets.nuscenes.descriptions import conditions_of
from perception.datasets.nuscenes.joined import JoinedTables
from perception.datasets.nuscenes.splits import official_splits
from perception.errors import InputError
from perception.frame import Conditions
from perception.rig import Box
from perception.sensors.lidar.sweeps import Sweep, join_lidars, outside_roof
from perception.voxels import VoxelGrid, occupancy_classes


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
        boxes, anns = oracle.tables.boxes(sample), oracle.devkit.get("sample", sample)["anns"]
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
        assert oracle.tables.obstacles(sample).instances.tolist() == others
    assert seen > 20
    for record in oracle.devkit.scene:  # samples are in order of time
        expected, sample = [], record["first_sample_token"]
        while sample:
            expected.append(sample)
            sample = oracle.devkit.get("sample", sample)["next"]
        assert oracle.tables.samples(None, [record["name"]]) == expected


@pytest.mark.parametrize("reference", ["ego", "lidar"])
def test_projected_boxes_equal_the_devkits(oracle: Oracle, reference: Any) -> None:
    seen = 0
    for sample in oracle.complete:
        frame = oracle.tables.frame(sample, reference)
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
        frame = oracle.tables.frame(sample, "lidar", sweeps=10, cameras=False)
        theirs = oracle.boxes(sample, "LIDAR_TOP")
        np.testing.assert_allclose(frame.boxes.corners(), [box.corners().T for box in theirs], atol=1e-9)
        record, ours = oracle.devkit.get("sample", sample), frame.points
        cloud, times = LidarPointCloud.from_file_multisweep(oracle.devkit, record, "LIDAR_TOP", "LIDAR_TOP", nsweeps=11)
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours[:, :3], cloud.points[:3].T, atol=1e-4)
        np.testing.assert_array_equal(ours[:, 3], cloud.points[3])
        np.testing.assert_allclose(ours[:, 4], times[0], atol=1e-6)
        lags.update(np.unique(ours[:, 4]))
        ego = oracle.tables.frame(sample, "ego", sweeps=10, cameras=False)
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


def test_a_keyframe_has_ten_real_clouds(nuscenes_root: Path, tmp_path: Path) -> None:
    tables, tokens = drive(nuscenes_root, tmp_path)
    assert len(tokens) == 4
    for sample in tokens:
        frame = tables.frame(sample, "lidar", SWEEPS)
        assert len(frame.cameras) == 6
        ages, counts = np.unique(frame.points[:, 4], return_counts=True)
        np.testing.assert_allclose(ages, 0.05 * np.arange(10), atol=1e-6)
        chain = [each.file for each in tables.recordings.chain(tables.recordings[sample]["LIDAR_TOP"], 10)]
        assert counts.tolist() == [int(outside_roof(read_points(tmp_path / file)).sum()) for file in chain]


def test_missing_files_are_missing_sensors(tiny_root: Path) -> None:
    tables = NuScenesTables(tiny_root, VERSION)
    sample = tables.samples()[2]
    whole, keyframe = tables.frame(sample, sweeps=10), tables.recordings[sample]
    assert ({*whole.cameras}, whole.location) == ({*CAMERAS}, "boston-seaport")
    assert whole.conditions == Conditions(weather="rain", light="night", city="boston")
    np.testing.assert_allclose(np.unique(whole.points[:, 4]), [0, 0.25, 0.5, 0.75, 1.0, 1.25], atol=1e-6)
    _, sweep = tables.recordings.chain(keyframe["LIDAR_TOP"], 1)
    (tiny_root / sweep.file).unlink()
    (tiny_root / keyframe["CAM_BACK"].file).unlink()
    frame = tables.frame(sample, sweeps=10)
    assert set(whole.cameras) - set(frame.cameras) == {"CAM_BACK"}
    np.testing.assert_array_equal(frame.points, whole.points[whole.points[:, 4] != np.float32(0.25)])
    (tiny_root / keyframe["LIDAR_TOP"].file).unlink()
    assert tables.frame(sample, sweeps=10).points is None
    for file in (tiny_root / "samples" / "CAM_FRONT").iterdir():
        os.truncate(file, 5)  # of a sensor that nobody asks for
    frame = tables.frame(sample, lidar=False, cameras=False, annotations=False)
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
        rack = tables.obstacles(sample)
        assert (rack.instances.tolist(), rack.labels.tolist()) == ([token("instance", "rack")], [-1])
        np.testing.assert_allclose(rack.centers, [[105, 42, 1]])
        np.testing.assert_allclose(rack.velocities, [[0, 0, 0]], atol=1e-12)
        assert tables.boxes(sample).instances.tolist() == [token("instance", "car"), token("instance", "walker")]

    first, second, third = tables.samples()
    assert [tables.has_occupancy(sample) for sample in tables.samples()] == [True, False, False]
    assert tables.occupancy(second) is None
    found = tables.occupancy(first)
    assert found.grid == VoxelGrid()
    assert occupancy_classes(NUSCENES)[17] == "free"
    with np.load(voxels_of(root)) as file:
        np.testing.assert_array_equal(found.classes, file["semantics"].transpose(2, 1, 0))
        np.testing.assert_array_equal(found.seen_by_lidar, file["mask_lidar"].transpose(2, 1, 0) == 1)
        np.testing.assert_array_equal(found.seen_by_cameras, file["mask_camera"].transpose(2, 1, 0) == 1)
    assert (found.seen_by_lidar.dtype, found.classes.dtype) == (np.dtype(bool), np.dtype(np.uint8))

    names = [each.name for each in NUSCENES.point_classes]
    expected = {0: -1, 17: names.index("car"), 2: names.index("pedestrian"), 13: -1}
    assert [tables.has_point_classes(sample) for sample in tables.samples()] == [True, True, False]
    for k, sample in enumerate((first, second)):
        frame = tables.frame(sample, "lidar", sweeps=2, cameras=False)
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
    assert tables.frame(first, annotations=False).class_of_point is None


def test_a_dataroot_without_these_annotations(tmp_path: Path) -> None:
    """Without the table of the classes of points, the folder that is left does not matter."""
    root = write_annotated(tmp_path / "tiny")
    (root / VERSION / "lidarseg.json").unlink()
    shutil.rmtree(root / "gts")
    tables, first = NuScenesTables(root, VERSION), token("sample", 0)
    assert not tables.has_point_classes(first)
    assert not tables.has_occupancy(first)
    assert tables.frame(first).class_of_point is None
    (root / VERSION / "sample_annotation.json").write_text("[]")
    assert NuScenesTables(root, VERSION).obstacles(first) is None


def test_classes_stay_with_the_points_of_joined_lidars() -> None:
    """Sorted by time, without those of the own vehicle; a LiDAR without annotations has none."""
    rng, own = np.random.default_rng(2), Box(center=(0.0, 0.0, 0.0), size=(8.0, 8.0, 8.0))

    def swept(timestamp: int, annotated: bool) -> Sweep:
        points = np.column_stack([rng.uniform(-9, 9, (300, 3)), rng.integers(0, 16, 300), np.zeros(300)])
        points = points.astype(np.float32)
        classes = points[:, 3].astype(np.int16) if annotated else None  # the intensity is the class
        return Sweep(points, timestamp, np.eye(4), np.eye(4), classes=classes)

    sweeps = {0: [swept(1000, True), swept(500, False)], 1: [swept(1010, True)], 2: [swept(990, False)]}
    points, lidars, classes = join_lidars(sweeps, 1000, np.eye(4), own)
    with_classes = (lidars == 1) | ((lidars == 0) & (points[:, 4] < 1e-5))
    assert 300 < with_classes.sum() < 600
    np.testing.assert_array_equal(classes, np.where(with_classes, points[:, 3], -1))
    single = join_lidars({0: sweeps[0]}, 1000, np.eye(4), own)
    assert single.lidars is None
    np.testing.assert_array_equal(single.classes, np.where(single.points[:, 4] < 1e-5, single.points[:, 3], -1))
    assert join_lidars({0: sweeps[0][1:]}, 1000, np.eye(4), own).classes is None
