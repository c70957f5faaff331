"""Sweeps of a real car in KITTI's own files of 16 bytes a point, as they are published."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from repository import recorded

from perception.datasets.keyframes import Reads
from perception.datasets.sources import open_source
from perception.rig import load_rig

SPACING = 103_500  # us
PLACE = (49.011, 8.43, 112.8)  # latitude, longitude, altitude of the first frame
EARTH = 6_378_137.0
DRIVE = "2011_09_26_drive_0001_sync"


@pytest.fixture(scope="module")
def data() -> Path:
    return recorded("kitti_raw", "poses.txt")


@pytest.fixture(scope="module")
def poses(data: Path) -> np.ndarray:
    rows = np.loadtxt(data / "poses.txt").reshape(-1, 3, 4)
    return np.concatenate([rows, np.tile([[[0, 0, 0, 1.0]]], (len(rows), 1, 1))], axis=1)


def _line(name: str, numbers: object) -> str:
    return f"{name}: {' '.join(f'{each:.12e}' for each in np.ravel(numbers))}\n"  # type: ignore[arg-type]


def _oxts(pose: np.ndarray) -> str:
    """Position and attitude of an IMU at the LiDAR, by the inverse of the devkit's Mercator projection."""
    latitude, longitude, altitude = PLACE
    scale = EARTH * np.cos(np.radians(latitude))
    x, y, z = pose[:3, 3]
    north = y / scale + np.log(np.tan(np.radians(90 + latitude) / 2))
    angles = np.arctan2(pose[2, 1], pose[2, 2]), np.arcsin(-pose[2, 0]), np.arctan2(pose[1, 0], pose[0, 0])
    place = (2 * np.degrees(np.arctan(np.exp(north))) - 90, longitude + np.degrees(x / scale), altitude + z)
    return " ".join(f"{each:.15g}" for each in (*place, *angles, *[0] * 24))


@pytest.fixture(scope="module")
def root(data: Path, poses: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recording in the layout in which KITTI publishes its raw data."""
    root = tmp_path_factory.mktemp("kitti")
    date, values = root / "2011_09_26", yaml.safe_load((data / "calibration.yaml").read_text())
    drive = date / DRIVE
    for folder in ("velodyne_points", "oxts/data", "image_02"):
        (drive / folder).mkdir(parents=True)
    (drive / "velodyne_points" / "data").symlink_to(data / "velodyne")
    (drive / "image_02" / "data").mkdir()
    for picture in (data / "image_02").glob("*.jpg"):
        (drive / "image_02" / "data" / f"{picture.stem}.png").symlink_to(picture)
    stamps = np.datetime64("2011-09-26T13:02:25.594360") + SPACING * np.arange(len(poses)).astype("timedelta64[us]")
    lines = "".join(f"{str(each).replace('T', ' ')}375\n" for each in stamps)
    (drive / "velodyne_points" / "timestamps.txt").write_text(lines)
    for i, pose in enumerate(poses):
        (drive / "oxts" / "data" / f"{i:010d}.txt").write_text(_oxts(pose))
    mount = np.array(values["RT"])
    velodyne = "calib_time: 15-Mar-2012 11:37:16\n" + _line("R", mount[:, :3]) + _line("T", mount[:, 3])
    (date / "calib_velo_to_cam.txt").write_text(velodyne)
    (date / "calib_imu_to_velo.txt").write_text(_line("R", np.eye(3)) + _line("T", np.zeros(3)))
    projection = np.column_stack([values["intrinsics"], [45.0, 0.2, 0.003]])
    cameras = "calib_time: 09-Jan-2012 13:57:47\n" + _line("R_rect_00", values["R_rect_00"])
    (date / "calib_cam_to_cam.txt").write_text(cameras + _line("P_rect_02", projection))
    return root


def test_a_raw_drive_is_where_and_when_it_was(root: Path, data: Path, poses: np.ndarray) -> None:
    source = open_source(root, None, load_rig(data / "rig.yaml"))
    tokens = source.samples(None, [DRIVE])
    first = source.frame(tokens[0], Reads("lidar", cameras=False)).global_from_reference
    assert len(tokens) == 24
    for i in (0, 11, 23):
        frame = source.frame(tokens[i], Reads("lidar"))
        recorded_points = np.fromfile(data / "velodyne" / f"{i:010d}.bin", np.float32).reshape(-1, 4)
        outside = (np.abs(recorded_points[:, :2]) >= 1).any(axis=1)
        np.testing.assert_allclose(frame.points[:, :4], recorded_points[outside] * [1, 1, 1, 255], rtol=1e-6, atol=1e-5)
        # The file has six decimals of a metre and of the rotation.
        np.testing.assert_allclose(np.linalg.inv(first) @ frame.global_from_reference, poses[i], atol=2e-5)
        assert frame.timestamp - source.frame(tokens[0]).timestamp == SPACING * i
        assert frame.cameras["image_02"].image.shape == (375, 1242, 3)


def test_points_are_seen_where_kittis_projection_has_them(root: Path, data: Path) -> None:
    """The pixel of a point is P R_rect RT x, by the paper's equation 8."""
    source = open_source(root, None, load_rig(data / "rig.yaml"))
    frame = source.frame(source.samples()[0], Reads("lidar"))
    values = yaml.safe_load((data / "calibration.yaml").read_text())
    points = np.column_stack([frame.points[::500, :3].astype(np.float64), np.ones(len(frame.points[::500]))])
    rectified = np.array(values["R_rect_00"]) @ (np.array(values["RT"]) @ points.T)
    expected = np.array(values["intrinsics"]) @ rectified + np.array([[45.0], [0.2], [0.003]])
    camera = frame.cameras["image_02"]
    mount = source.recording(source.samples()[0]).ego_from_lidar
    seen = camera.intrinsics @ (np.linalg.inv(camera.ego_from_camera) @ mount @ points.T)[:3]
    np.testing.assert_allclose(seen, expected, atol=1e-8)


def test_earlier_sweeps_lie_on_the_street_that_the_sweep_sees(root: Path) -> None:
    """By the car's motion; left where the LiDAR measured them, they do not."""
    source = open_source(root, None)
    frame = source.frame(source.samples()[12], Reads("lidar", sweeps=3))
    now, before = (frame.points[frame.sweep_of_point == i] for i in (0, 3))
    np.testing.assert_allclose(before[:, 4], 3e-6 * SPACING, atol=1e-6)
    moved = np.linalg.inv(source.frame(source.samples()[9]).global_from_ego) @ frame.global_from_ego

    def misses(points: np.ndarray) -> float:
        """Share of the walls' and poles' cells of 0.2 m that the present sweep has nothing in."""
        cells = [
            {tuple(cell) for cell in np.floor(each[each[:, 2] > -0.8, :2] / 0.2).astype(int)} for each in (now, points)
        ]
        return len(cells[1] - cells[0]) / len(cells[1])

    measured = before.copy()
    measured[:, :3] = before[:, :3] @ moved[:3, :3].T + moved[:3, 3]
    assert misses(before) < 0.8 * misses(measured)
