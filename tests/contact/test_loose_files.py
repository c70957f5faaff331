"""A folder of files that somebody else wrote, without a layout, poses or times, is perceived."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from commands import one_line_error, refuses, succeeds
from repository import recorded

from deploy.network import Network, load, open_drives
from perception.datasets.keyframes import Reads
from perception.datasets.sources import open_source
from perception.frame import Frame
from perception.rig import load_rig

FIELDS = "FIELDS x y z intensity\nSIZE 4 4 4 4\nTYPE F F F F\nCOUNT 1 1 1 1\n"


@pytest.fixture(scope="module")
def data() -> Path:
    return recorded("kitti_raw", "poses.txt")


@pytest.fixture(scope="module")
def demo() -> Network:
    return load("demo")


def only_frame(path: Path) -> Frame:
    source = open_source(path, None, load_rig("nuscenes"))
    (token,) = source.samples()
    return source.frame(token, Reads("lidar"))


def test_a_real_sweep_is_the_same_in_each_kind_of_file(data: Path, tmp_path: Path) -> None:
    points = np.fromfile(data / "velodyne/0000000000.bin", np.float32).reshape(-1, 4)
    scaled = points * np.array([1, 1, 1, 255], np.float32)
    rings = np.arange(len(points), dtype=np.float32) % 64
    np.column_stack([scaled, rings]).tofile(tmp_path / "five.bin")
    points.tofile(tmp_path / "four.bin")
    np.save(tmp_path / "array.npy", points)
    np.save(tmp_path / "double.npy", points.astype(np.float64))
    count = f"WIDTH {len(points)}\nHEIGHT 1\nPOINTS {len(points)}\nDATA binary\n"
    (tmp_path / "cloud.pcd").write_bytes((FIELDS + count).encode() + points.tobytes())
    for path in tmp_path.iterdir():
        frame = only_frame(path)
        assert frame.points is not None
        np.testing.assert_allclose(np.sort(frame.points[:, 3]), np.sort(scaled[:, 3]), atol=1e-4)
        np.testing.assert_allclose(frame.points[:, :3], points[:, :3], atol=1e-4)
        assert not frame.placed


@pytest.mark.slow("a network runs on 24 frames, as a user has it do")
def test_a_real_drives_folder(data: Path, tmp_path: Path, demo: Network) -> None:
    """The command says what the files do not: poses and times; the devkit's reading is beside it by hand."""
    said = succeeds("predict", "demo", data, "--out", tmp_path / "out").replace("\n", " ")
    assert "poses and times of 24 frames are not known" in said
    assert "camera: nothing in any frame" in said
    frames = json.loads((tmp_path / "out/predictions.json").read_text())["frames"]
    assert [each["token"] for each in frames] == [f"{i:010d}" for i in range(24)]
    assert {(each["timestamp"], each["global_from_reference"]) for each in frames} == {(None, None)}
    points = np.fromfile(data / "velodyne/0000000005.bin", np.float32).reshape(-1, 4)
    by_hand = load("demo").predict(demo.frame(points)).boxes
    assert len(by_hand) > 0  # its LiDAR is mounted elsewhere than this one, so only its kind is compared
    (drive,) = [each for each in open_drives(data, demo) if each.name == "0000000005"]
    ((_, result),) = demo.follow(drive)
    np.testing.assert_allclose([each["score"] for each in frames[5]["detections"]], result.boxes.scores, atol=1e-6)


def test_pictures_of_a_camera_of_the_rig(tmp_path: Path) -> None:
    """Reduced pictures show the same; pictures of another shape are refused."""
    (front,) = [each for each in load_rig("nuscenes").cameras if each.name == "CAM_FRONT"]
    width, height = front.size[0] // 2, front.size[1] // 2
    picture = np.zeros((height, width, 3), np.uint8)
    picture[:, width // 2 :] = 255
    for folder, content in (("half", picture), ("cut", picture[: height // 2])):
        (tmp_path / folder / "CAM_FRONT").mkdir(parents=True)
        cv2.imwrite(str(tmp_path / folder / "CAM_FRONT" / "a.png"), content)
    frame = only_frame(tmp_path / "half")
    assert frame.points is None
    (camera,) = frame.cameras.values()
    point = np.array([1.0, 0.5, 10.0])  # m
    full, half = (intrinsics @ point / point[2] for intrinsics in (front.intrinsics, camera.intrinsics))
    np.testing.assert_allclose((half[:2] + 0.5) * 2, full[:2] + 0.5)
    np.testing.assert_array_equal(camera.image, picture)
    with one_line_error(says="its calibration is for"):
        only_frame(tmp_path / "cut")


def test_what_is_no_file_of_a_sensor_is_said(tmp_path: Path) -> None:
    (tmp_path / "damaged").mkdir()
    np.save(tmp_path / "damaged" / "a.npy", np.zeros((5, 3), np.float32))
    (tmp_path / "named").mkdir()
    cv2.imwrite(str(tmp_path / "named" / "a.png"), np.zeros((9, 16, 3), np.uint8))
    (tmp_path / "empty").mkdir()
    assert "a.npy" in refuses("predict", "demo", tmp_path / "damaged", "--out", tmp_path / "out")
    assert "CAM_FRONT" in refuses("predict", "demo", tmp_path / "named", "--out", tmp_path / "out")
    assert str(tmp_path / "empty") in refuses("predict", "demo", tmp_path / "empty", "--out", tmp_path / "out")
    with one_line_error(says="demo"):
        load("dema")
