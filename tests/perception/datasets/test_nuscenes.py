"""Frames against the official devkit, on real keyframes and on simulated ones."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nuscenes import NuScenes
from nuscenes.eval.detection.utils import category_to_detection_name
from nuscenes.utils.data_classes import Box, LidarPointCloud
from nuscenes.utils.geometry_utils import BoxVisibility, view_points
from nuscenes.utils.splits import create_splits_scenes
from vocabulary import ATTRIBUTES, CAMERAS, CLASSES, NUSCENES

from perception.datasets.nuscenes import tables as tables_module
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.datasets.nuscenes.descriptions import conditions_of
from perception.datasets.nuscenes.splits import official_splits
from perception.errors import InputError
from perception.frame import Conditions


@dataclass(frozen=True)
class Oracle:
    """Our tables beside the devkit's, and the keyframes that have a LiDAR file."""

    tables: NuScenesTables
    devkit: NuScenes
    complete: list[str]

    def annotations(self, sample: str) -> list[str]:
        """Tokens of the annotations of the ten classes, in the devkit's order."""
        anns = self.devkit.get("sample", sample)["anns"]
        return [a for a in anns if category_to_detection_name(self.row(a)["category_name"])]

    def row(self, annotation: str) -> dict[str, Any]:
        return self.devkit.get("sample_annotation", annotation)

    def boxes(self, sample: str, channel: str) -> list[Box]:
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
        boxes, annotations = oracle.tables.boxes(sample), oracle.annotations(sample)
        assert len(boxes) == len(annotations)
        for i, annotation in enumerate(annotations):
            row, box = oracle.row(annotation), oracle.devkit.get_box(annotation)
            np.testing.assert_allclose(boxes.centers[i], box.center, atol=1e-12)
            np.testing.assert_allclose(boxes.sizes[i], box.wlh, atol=1e-12)
            np.testing.assert_allclose(boxes.rotations[i], box.rotation_matrix, atol=1e-12)
            np.testing.assert_array_equal(boxes.velocities[i], oracle.devkit.box_velocity(annotation))
            assert CLASSES[boxes.labels[i]] == category_to_detection_name(row["category_name"])
            assert boxes.num_points[i] == row["num_lidar_pts"] + row["num_radar_pts"]
            assert boxes.instances[i] == row["instance_token"]
            names = [oracle.devkit.get("attribute", a)["name"] for a in row["attribute_tokens"]]
            assert [ATTRIBUTES[a] for a in boxes.attributes[i : i + 1] if a >= 0] == names
            seen += 1
    assert seen > 20


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


def test_lidar_boxes_equal_the_devkits(oracle: Oracle) -> None:
    for sample in oracle.complete:
        boxes = oracle.tables.frame(sample, "lidar", cameras=False).boxes
        theirs = oracle.boxes(sample, "LIDAR_TOP")
        np.testing.assert_allclose(boxes.corners(), [box.corners().T for box in theirs], atol=1e-9)


def test_sweeps_equal_the_devkits(oracle: Oracle) -> None:
    lags = set()
    for sample in oracle.complete:
        ours = oracle.tables.frame(sample, "lidar", sweeps=10, cameras=False).points
        record = oracle.devkit.get("sample", sample)
        cloud, times = LidarPointCloud.from_file_multisweep(oracle.devkit, record, "LIDAR_TOP", "LIDAR_TOP", nsweeps=11)
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours[:, :3], cloud.points[:3].T, atol=1e-4)
        np.testing.assert_array_equal(ours[:, 3], cloud.points[3])
        np.testing.assert_allclose(ours[:, 4], times[0], atol=1e-6)
        lags.update(np.unique(ours[:, 4]))
    assert min(lags) == 0
    assert len(lags) >= 3


def test_both_references_place_points_and_boxes_alike(oracle: Oracle) -> None:
    for sample in oracle.complete[:2]:
        ego = oracle.tables.frame(sample, "ego", sweeps=2, cameras=False)
        lidar = oracle.tables.frame(sample, "lidar", sweeps=2, cameras=False)
        ego_from_lidar = np.linalg.inv(ego.global_from_reference) @ lidar.global_from_reference
        moved = lidar.points[:, :3] @ ego_from_lidar[:3, :3].T + ego_from_lidar[:3, 3]
        np.testing.assert_allclose(ego.points[:, :3], moved, atol=1e-4)
        np.testing.assert_array_equal(ego.global_from_ego, ego.global_from_reference)


def test_official_splits_equal_the_devkits() -> None:
    assert official_splits() == create_splits_scenes()


def test_official_splits(nuscenes_root: Path) -> None:
    tables = NuScenesTables(nuscenes_root, "v1.0-mini")
    assert tables.scenes("mini_val") == create_splits_scenes()["mini_val"] == tables.scenes()
    assert len(tables.samples("mini_val")) == 81
    assert tables.samples("all", ["scene-0916", "scene-0103:0-4"]) == [
        *tables.samples(None, ["scene-0916"]),
        *tables.samples()[:4],
    ]
    with pytest.raises(InputError, match=r"no scene of split mini_train is here; it has scene-0103, scene-0916"):
        tables.samples("mini_train")


def test_samples_are_in_order_of_time(oracle: Oracle) -> None:
    for scene in oracle.tables.scenes():
        record = next(s for s in oracle.devkit.scene if s["name"] == scene)
        expected, sample = [], record["first_sample_token"]
        while sample:
            expected.append(sample)
            sample = oracle.devkit.get("sample", sample)["next"]
        assert oracle.tables.samples(None, [scene]) == expected


def test_real_keyframes_without_files_are_read_without_sensors(nuscenes_root: Path) -> None:
    tables = NuScenesTables(nuscenes_root, "v1.0-mini")
    samples = tables.samples(None, ["scene-0103:0-8"])
    frames = [tables.frame(sample) for sample in samples]
    assert [len(frame.cameras) for frame in frames] == [6, 6, 6, 6, 0, 0, 0, 0]
    assert [frame.points is not None for frame in frames] == [True] * 7 + [False]
    assert all(frame.boxes is not None and len(frame.boxes) for frame in frames)
    assert frames[0].conditions == Conditions(weather="clear", light="day", city="boston")
    assert frames[0].location == "boston-seaport"


def test_a_frame_of_the_tiny_drive(tiny_root: Path) -> None:
    tables = NuScenesTables(tiny_root, "v1.0-tiny")
    frame = tables.frame(tables.samples("train")[1], sweeps=10)
    assert set(frame.cameras) == set(CAMERAS)
    assert frame.conditions == Conditions(weather="rain", light="night", city="boston")
    assert [CLASSES[label] for label in frame.boxes.labels] == ["car", "pedestrian"]
    np.testing.assert_allclose(frame.boxes.velocities, [[5, 0, 0], [0, 0, 0]], atol=1e-6)
    np.testing.assert_allclose(frame.boxes.centers[0], [10, 0, 1], atol=1e-9)
    np.testing.assert_allclose(np.unique(frame.points[:, 4]), [0, 0.25, 0.5, 0.75], atol=1e-6)


def test_a_sweep_is_moved_by_the_vehicles_motion(tiny_root: Path) -> None:
    tables = NuScenesTables(tiny_root, "v1.0-tiny")
    sample = tables.samples()[1]
    points = tables.frame(sample, sweeps=1).points
    _, sweep = tables.recordings.chain(tables.recordings[sample]["LIDAR_TOP"], 1)
    raw = np.fromfile(tiny_root / sweep.file, np.float32).reshape(-1, 5)
    raw = raw[(np.abs(raw[:, :2]) >= 1).any(axis=1)]
    older = points[points[:, 4] > 0]
    # The sensor is at (1, 0, 1.5); in the 0.25 s since the sweep the vehicle went on by 1.25 m.
    np.testing.assert_allclose(older[:, :3], raw[:, :3] + [1 - 1.25, 0, 1.5], atol=1e-5)
    np.testing.assert_array_equal(older[:, 3], raw[:, 3])


def test_missing_files_are_missing_sensors(tiny_root: Path) -> None:
    tables = NuScenesTables(tiny_root, "v1.0-tiny")
    sample = tables.samples()[2]
    whole = tables.frame(sample, sweeps=10)
    keyframe = tables.recordings[sample]
    _, sweep = tables.recordings.chain(keyframe["LIDAR_TOP"], 1)
    (tiny_root / sweep.file).unlink()
    (tiny_root / keyframe["CAM_BACK"].file).unlink()
    frame = tables.frame(sample, sweeps=10)
    assert set(whole.cameras) - set(frame.cameras) == {"CAM_BACK"}
    np.testing.assert_array_equal(frame.points, whole.points[whole.points[:, 4] != np.float32(0.25)])
    (tiny_root / keyframe["LIDAR_TOP"].file).unlink()
    assert tables.frame(sample, sweeps=10).points is None


def test_only_the_sensors_asked_for_are_read(tiny_root: Path) -> None:
    tables = NuScenesTables(tiny_root, "v1.0-tiny")
    shutil.rmtree(tiny_root / "samples" / "LIDAR_TOP")
    for file in (tiny_root / "samples" / "CAM_FRONT").iterdir():
        os.truncate(file, 5)
    frame = tables.frame(tables.samples()[0], lidar=False, cameras=False, annotations=False)
    assert frame.points is None
    assert frame.boxes is None
    assert not frame.cameras


@pytest.mark.parametrize(
    ("description", "location", "expected"),
    [
        (
            "Night, after rain, many peds",
            "singapore-hollandvillage",
            Conditions(weather="rain", light="night", city="singapore"),
        ),
        (
            "Parked cars, train crossing, terrain",
            "boston-seaport",
            Conditions(weather="clear", light="day", city="boston"),
        ),
        ("Rain; heavy fog", "singapore-onenorth", Conditions(weather="rain", light="day", city="singapore")),
        ("foggy night", "somewhere", Conditions(weather="fog", light="night", city=None)),
        ("", "boston-seaport", Conditions(weather=None, light=None, city="boston")),
    ],
)
def test_conditions(description: str, location: str, expected: Conditions) -> None:
    assert conditions_of(description, location, NUSCENES) == expected


_values = st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5) | st.lists(st.floats(0, 1), max_size=2)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.dictionaries(st.text(max_size=3), _values, max_size=2), max_size=30), st.sampled_from([None, 0, 2]))
def test_tables_are_read_as_json_across_chunks(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], indent: int | None
) -> None:
    folder = tmp_path_factory.getbasetemp()
    (folder / "table.json").write_text(json.dumps(rows, indent=indent))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables_module, "_CHUNK", 300)
        assert list(tables_module.rows(folder, "table")) == rows
