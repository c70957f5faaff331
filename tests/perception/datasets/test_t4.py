"""TIER IV's T4: a folder with tables and files for each drive, read as its devkit reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from refusals import one_line_error
from t4_devkit import Tier4

from perception.datasets.files import read_image
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.datasets.nuscenes.joined import JoinedTables
from perception.rig import load_rig
from perception.sources import open_source
from perception.taxonomy import load_taxonomy

T4, RIG = load_taxonomy("t4"), load_rig("t4")
NAMES = {"vehicle.car": "car", "vehicle.truck": "vehicle.truck", "human.pedestrian.adult": "pedestrian"}
ATTRIBUTES = {"vehicle.moving": "vehicle_state.driving", "vehicle.parked": "vehicle_state.parked"}
DISTORTION = [-0.3, 0.1, 0.001, -0.002, 0.01]  # of one camera
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def root(sim_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The simulated drives, each in a folder of its own."""
    root = tmp_path_factory.mktemp("t4")
    tables = {path.stem: json.loads(path.read_text()) for path in (sim_root / "v1.0-sim").glob("*.json")}
    for number, scene in enumerate(tables["scene"]):
        folder = root / f"drive{number}" / "0"
        (folder / "annotation").mkdir(parents=True)
        content = of_scene(tables, scene["token"])
        channels = as_t4(content)
        for i, row in enumerate(content["sample_data"]):
            channel = channels[row["calibrated_sensor_token"]]
            row["fileformat"] = "jpg" if channel.startswith("CAM") else "pcd.bin"
            file = f"data/{channel}/{i}.{row['fileformat']}"
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).symlink_to(sim_root / row["filename"])
            row["filename"] = file
        blind = [row for row in content["sample_data"] if channels[row["calibrated_sensor_token"]] == "CAM_BACK"]
        blind[0]["is_valid"] = False
        for name, rows in content.items():
            (folder / "annotation" / f"{name}.json").write_text(json.dumps(rows))
    (root / "splits.json").write_text(json.dumps({"train": ["drive0"], "val": ["scene-0002"]}))
    return root


def of_scene(tables: dict[str, Rows], scene: str) -> dict[str, Rows]:
    """The rows of one drive."""
    kept = {row["token"] for row in tables["sample"] if row["scene_token"] == scene}
    content = {
        name: json.loads(json.dumps(rows)) for name, rows in tables.items() if name not in {"splits", "lidarseg"}
    }
    content["scene"] = [row for row in content["scene"] if row["token"] == scene]
    content["sample"] = [row for row in content["sample"] if row["token"] in kept]
    for name in ("sample_data", "sample_annotation"):
        content[name] = [row for row in content[name] if row["sample_token"] in kept]
    instances = {row["instance_token"] for row in content["sample_annotation"]}
    content["instance"] = [row for row in content["instance"] if row["token"] in instances]
    return content


def as_t4(content: dict[str, Rows]) -> dict[str, str]:
    """Write the rows in T4's words; returns the channel of each calibration."""
    for row in content["log"]:
        row["data_captured"] = row.pop("date_captured")
    for row in content["sensor"]:
        row["channel"] = {"LIDAR_TOP": "LIDAR_CONCAT"}.get(row["channel"], row["channel"])
    channel = {row["token"]: row["channel"] for row in content["sensor"]}
    for row in content["calibrated_sensor"]:
        distorted = channel[row["sensor_token"]] == "CAM_FRONT"
        row["camera_distortion"] = (DISTORTION if distorted else [0.0] * 5) if row["camera_intrinsic"] else []
    for row in content["category"]:
        row["name"] = NAMES.get(row["name"], row["name"])
        del row["index"]
    for row in content["attribute"]:
        row["name"] = ATTRIBUTES.get(row["name"], row["name"])
    content["attribute"].append({"token": "seen", "name": "occlusion_state.none", "description": ""})
    for row in content["sample_annotation"]:
        row["attribute_tokens"].insert(0, "seen")
    for row in content["instance"]:
        row["instance_name"] = "a"
    return {row["token"]: channel[row["sensor_token"]] for row in content["calibrated_sensor"]}


def test_frames_and_boxes_are_the_devkits(root: Path) -> None:
    folder = root / "drive0" / "0"
    tables, devkit = open_source(folder, None, RIG, T4), Tier4("annotation", str(folder), verbose=False)
    assert isinstance(tables, NuScenesTables)
    labels, found = T4.labels_of_categories(), 0
    for row, token in zip(devkit.sample, tables.samples(), strict=True):
        boxes = tables.boxes(token)
        assert boxes is not None
        kept = [a for a in row.ann_3ds if devkit.get("sample_annotation", a).category_name in labels]
        assert len(boxes) == len(kept)
        for i, annotation in enumerate(kept):
            box, stored = devkit.get_box3d(annotation), devkit.get("sample_annotation", annotation)
            np.testing.assert_array_equal(boxes.centers[i], box.center)
            np.testing.assert_array_equal(boxes.sizes[i], box.wlh)
            assert T4.class_names[boxes.labels[i]] == T4.class_names[labels[stored.category_name]]
            names = [devkit.get("attribute", each).name for each in stored.attribute_tokens]
            known = [T4.attributes.index(name) for name in names if name in T4.attributes]
            assert boxes.attributes[i] == (known[0] if known else -1)
            found += bool(known)
        frame = tables.frame(token)
        valid = {name: devkit.get("sample_data", data) for name, data in row.data.items()}
        assert {*frame.cameras} == {name for name, each in valid.items() if each.is_valid} - {"LIDAR_CONCAT"}
        raw = np.fromfile(devkit.get_sample_data_path(row.data["LIDAR_CONCAT"]), np.float32).reshape(-1, 5)
        assert frame.points is not None
        assert 0 < len(frame.points) <= len(raw)
        for name, camera in frame.cameras.items():
            path = devkit.get_sample_data_path(row.data[name])
            intrinsics = devkit.get("calibrated_sensor", valid[name].calibrated_sensor_token).camera_intrinsic
            np.testing.assert_array_equal(camera.intrinsics, intrinsics)
            picture = read_image(Path(path)).image
            rectified = cv2.undistort(picture, intrinsics, np.array(DISTORTION))
            np.testing.assert_array_equal(camera.image, rectified if name == "CAM_FRONT" else picture)
    assert found > 10


def test_many_drives_are_one_data_set(root: Path, tables: NuScenesTables) -> None:
    """With splits that list scenes or folders."""
    joined = open_source(root, None, RIG, T4)
    assert isinstance(joined, JoinedTables)
    assert joined.version == "annotation"
    assert (joined.scenes(), joined.samples()) == (tables.scenes(), tables.samples())
    assert [joined.scenes(split) for split in ("train", "val")] == [["scene-0001"], ["scene-0002"]]
    assert joined.samples(selectors=["scene-0002:0-2"]) == tables.samples(selectors=["scene-0002:0-2"])
    for token in joined.samples():
        ours, theirs = joined.frame(token, cameras=False), tables.frame(token, cameras=False)
        np.testing.assert_array_equal(ours.points, theirs.points)
        assert (joined.scene(token), joined.timestamp(token)) == (tables.scene(token), tables.timestamp(token))
        assert ours.boxes is not None
        assert len(ours.boxes) == len(joined.boxes(token))
    assert not joined.bicycle_racks()
    assert joined.map("") is None
    with one_line_error(at=root, says="has no split test; known are train, val, all"):
        joined.scenes("test")


def test_drives_that_cannot_be_joined_are_told(root: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).symlink_to(root / "drive0")
    with one_line_error(at=tmp_path, says="both have a scene scene-0001; remove one"):
        open_source(tmp_path, None, RIG, T4)
    with one_line_error(says="these drives are of another vehicle than the rig nuscenes: they have no LIDAR_TOP"):
        open_source(root, None, None, T4)
