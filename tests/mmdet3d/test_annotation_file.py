"""What is installed; and our tables as mmdet3d's annotation file, against what its own converter collects of them."""

import json
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import pytest
from bench_loader import pipeline
from mmdet3d.datasets import NuScenesDataset
from mmdet3d_drives import FOLDERS, converter
from nuscenes import NuScenes
from ten_sweeps import SWEEPS, drive
from vocabulary import CAMERAS

from perception.datasets.keyframes import Reads
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.datasets.sweeps import is_outside_roof
from perception.errors import InputError
from perception.geometry import rigid
from perception.mmdet3d import annotation_file
from perception.mmdet3d.annotation_file import LABELS


def test_the_file_says_what_mmdet3ds_converter_says(mini_root: Path, tmp_path: Path):
    tables = NuScenesTables(mini_root, "v1.0-mini")
    annotation_file.write(tmp_path / "a.json", tables, tables.samples())
    content = json.loads((tmp_path / "a.json").read_text())
    devkit = NuScenes("v1.0-mini", str(mini_root), verbose=False)
    scenes = {scene["token"] for scene in devkit.scene}
    rows, _ = converter("nuscenes_converter")._fill_trainval_infos(devkit, scenes, set())
    theirs = {row["token"]: row for row in rows}
    assert content["metainfo"]["version"] == "v1.0-mini"
    assert NuScenesDataset.METAINFO["classes"] == LABELS
    assert [entry["sample_idx"] for entry in content["data_list"]] == list(range(len(theirs)))
    for entry in content["data_list"]:
        row = theirs.pop(entry["token"])
        assert entry["timestamp"] == pytest.approx(row["timestamp"] / 1e6, abs=1e-6)
        _close(entry["ego2global"], rigid(row["ego2global_translation"], row["ego2global_rotation"]))
        _close(entry["lidar_points"]["lidar2ego"], rigid(row["lidar2ego_translation"], row["lidar2ego_rotation"]))
        assert (mini_root / "samples/LIDAR_TOP" / entry["lidar_points"]["lidar_path"]).samefile(row["lidar_path"])
        assert len(entry["lidar_sweeps"]) == len(row["sweeps"])
        for ours, sweep in zip(entry["lidar_sweeps"], row["sweeps"], strict=True):
            placing = np.array(ours["lidar_points"]["lidar2sensor"])  # p @ placing[:3, :3] - placing[:3, 3]
            _close(placing[:3, :3], sweep["sensor2lidar_rotation"].T)
            _close(-placing[:3, 3], sweep["sensor2lidar_translation"])
            assert ours["timestamp"] == pytest.approx(sweep["timestamp"] / 1e6, abs=1e-6)
        for name, camera in row["cams"].items():
            image = entry["images"][name]
            lidar_from_camera = np.eye(4)
            lidar_from_camera[:3, :3] = camera["sensor2lidar_rotation"]
            lidar_from_camera[:3, 3] = camera["sensor2lidar_translation"]
            _close(image["lidar2cam"], np.linalg.inv(lidar_from_camera))
            _close(image["cam2img"], camera["cam_intrinsic"])
        known = [i for i, name in enumerate(row["gt_names"]) if name in LABELS]
        instances = entry["instances"]
        _close([i["bbox_3d"] for i in instances], row["gt_boxes"][known])
        _close([i["velocity"] for i in instances], row["gt_velocity"][known])
        assert [LABELS[i["bbox_label_3d"]] for i in instances] == row["gt_names"][known].tolist()
        assert [i["bbox_3d_isvalid"] for i in instances] == row["valid_flag"][known].tolist()
    assert not theirs


def _close(ours: Any, theirs: Any) -> None:
    np.testing.assert_allclose(np.reshape(ours, np.shape(theirs)), theirs, rtol=0, atol=1e-6)


def test_keyframes_without_a_lidar_file_are_left_out(mini_root: Path, tmp_path: Path):
    tables = NuScenesTables(mini_root, "v1.0-mini")
    tables.dataroot = tmp_path
    with pytest.raises(InputError, match="none of the 6 keyframes has its LiDAR file"):
        annotation_file.write(tmp_path / "a.json", tables, tables.samples())


def test_both_sides_of_the_benchmark_of_loaders_read_the_same(nuscenes_root: Path, tmp_path: Path) -> None:
    """tools/bench.py loader: before augmentation they have the same points, pictures and boxes."""
    tables, tokens = drive(nuscenes_root, tmp_path)
    annotation_file.write(tmp_path / "infos.json", tables, tokens)
    loads = [step for step in pipeline(False) if step["type"].startswith("Load")]
    theirs = NuScenesDataset(
        data_root=str(tmp_path),
        ann_file="infos.json",
        data_prefix=FOLDERS,
        modality={"use_lidar": True, "use_camera": True},
        pipeline=loads,
        filter_empty_gt=False,
    )
    for i, token in enumerate(tokens):
        sample, frame = theirs[i], tables.frame(token, Reads("lidar", SWEEPS))
        points = sample["points"].numpy()
        points = points[is_outside_roof(points) | (points[:, 4] > 0)]  # mmdet3d leaves those of the keyframe's roof
        assert points.shape == frame.points.shape
        # Theirs may have the sweeps in another order.
        np.testing.assert_allclose(np.sort(points, axis=0), np.sort(frame.points, axis=0), atol=1e-3)
        assert len(sample["gt_bboxes_3d"]) == (frame.boxes.num_points > 0).sum()
        for name, picture in zip(CAMERAS, sample["img"], strict=True):
            np.testing.assert_array_equal(picture[..., ::-1], frame.cameras[name].image)


def test_versions_are_those_that_the_bridge_is_written_for_and_nothing_is_there_twice():
    assert (version("mmdet3d"), version("mmdet"), np.__version__.split(".")[0]) == ("1.4.0", "3.3.0", "1")
    assert version("onedl-mmcv").startswith("2.3.")
    assert mmcv.__version__ == version("onedl-mmcv")  # it has its own number again
    owners = packages_distributions()
    expected = {"cv2": "opencv-python-headless", "mmcv": "onedl-mmcv", "mmengine": "onedl-mmengine"}
    assert {name: owners[name] for name in expected} == {name: [owner] for name, owner in expected.items()}
