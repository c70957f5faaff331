"""The sensors of a vehicle as data: what a rig may say, and what it means."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from refusals import one_line_error
from scipy.spatial.transform import Rotation
from vocabulary import RIG

from perception.config import load_config, parse_config
from perception.frame import Frame
from perception.rig import Box, Mount, Rig, load_rig, ordered_by_view
from perception.sensors.lidar.sweeps import Sweep, join_lidars

RIGS = ("nuscenes", "truck", "shuttle")
angles = st.floats(-360, 360)


@given(angles, angles, angles)
def test_the_mount_is_scipys_rotation(yaw: float, pitch: float, roll: float) -> None:
    mount = Mount(position=(1.0, 2.0, 3.0), yaw=yaw, pitch=pitch, roll=roll)
    expected = Rotation.from_euler("ZYX", [yaw, pitch, roll], degrees=True).as_matrix()
    np.testing.assert_allclose(mount.ego_from_mount[:3, :3], expected, atol=1e-11)
    assert mount.ego_from_mount[:3, 3].tolist() == [1, 2, 3]


@pytest.mark.parametrize("name", RIGS)
def test_cameras_look_along_their_mount(name: str) -> None:
    """z is the mount's x, the optical axis; x is right, y down."""
    for camera in load_rig(name).cameras:
        assert camera.mount is not None
        mount, pose = camera.mount.ego_from_mount, camera.ego_from_sensor
        np.testing.assert_array_equal(pose[:3, 2], mount[:3, 0])
        np.testing.assert_array_equal(pose[:3, 0], -mount[:3, 1])
        np.testing.assert_array_equal(pose[:3, 1], -mount[:3, 2])
        assert np.linalg.det(pose[:3, :3]) == pytest.approx(1)


def test_nuscenes_car() -> None:
    """Its LiDAR's x points to the right and y ahead, its rear camera looks back."""
    np.testing.assert_array_equal(RIG.lidars[0].ego_from_sensor[:3, :3], [[0, 1, 0], [-1, 0, 0], [0, 0, 1]])
    np.testing.assert_array_equal(RIG.cameras[3].ego_from_sensor[:3, :3], [[0, 0, -1], [1, 0, 0], [0, -1, 0]])
    np.testing.assert_array_equal(RIG.cameras[3].intrinsics, [[405, 0, 400], [0, 405, 235], [0, 0, 1]])


@pytest.mark.parametrize("name", RIGS)
def test_rigs_that_come_with_the_package(name: str, tmp_path: Path) -> None:
    """By name, by file and inline they are the same, and simulated as they are."""
    rig = load_rig(name)
    rig.require_calibration()
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump(rig.model_dump(mode="json")))
    assert load_rig(file) == rig == Rig.model_validate_json(rig.model_dump_json())
    for given_as in (name, str(file), rig.model_dump(mode="json")):
        config = parse_config({"name": "a", "rig": given_as}, "a.yaml")
        assert config.rig == rig
        assert parse_config(config.model_dump(mode="json"), "checkpoint.json").rig == rig
    assert rig.calibrated() == rig


def test_a_configuration_without_a_rig_is_for_nuscenes(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: a\n")
    assert load_config(tmp_path / "a.yaml").rig == RIG


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lidars": []}, "(top level): `lidars` is empty; a rig has at least one LiDAR, whose time is the frame's"),
        ({"lidars": [{"name": "top"}, {"name": "Top"}]}, "(top level): two sensors are called 'top'"),
        ({"cameras": [{"name": "top"}], "lidars": [{"name": "top"}]}, "(top level): two sensors are called 'top'"),
        ({"lidars": [{"name": "lidar"}]}, "(top level): a sensor is called 'lidar', which stands for several"),
        ({"lidars": [{"name": "my lidar"}]}, "lidars.0.name: string should match pattern"),
        ({"cameras": [{"name": "front", "size": [0, 10]}]}, "cameras.0.size.0: input should be greater than 0, got 0"),
        ({"cameras": [{"name": "front", "lens": {}}]}, "cameras.0.lens.focal: field required"),
        (
            {"cameras": [{"name": "front", "lens": {"focal": 9.0, "distortion": [1.0]}}]},
            "cameras.0.lens.distortion: has 1 coefficients; OpenCV's models have 4, 5 or 8",
        ),
        ({"cameras": [{"name": "front", "fps": 10}]}, "cameras.0.fps: is not a known key"),
        (
            {"lidars": [{"name": "top", "health": {"points": 5}}]},
            "lidars.0.health.points: is not a known key",
        ),
        ({"own": {"center": [0, 0, 0], "size": [1, 1, -1]}}, "own.size.2: input should be greater than 0, got -1"),
    ],
)
def test_a_wrong_rig_is_told_in_one_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    file = tmp_path / "rig.yaml"
    file.write_text(yaml.safe_dump({"name": "mine", "lidars": [{"name": "top"}]} | change))
    with one_line_error(at=f"{file}: ", says=message):
        load_rig(file)


def test_an_unknown_rig_is_told_with_those_that_are_known(tmp_path: Path) -> None:
    with one_line_error(
        exactly="rig trukc: not known; give a YAML file or one of nuscenes, pandaset, pandaset_64, shuttle, t4, truck"
    ):
        load_rig("trukc")
    with one_line_error(exactly=f"{tmp_path}/a.yaml: cannot read the rig (FileNotFoundError)"):
        load_rig(tmp_path / "a.yaml")


def test_a_network_with_a_camera_branch_needs_a_camera() -> None:
    blind = {"name": "blind", "lidars": [{"name": "top"}]}
    with one_line_error(exactly="a.yaml: (top level): model.camera: the rig blind has no camera"):
        parse_config({"name": "a", "rig": blind, "model": {"camera": {}}}, "a.yaml")


def test_sensors_without_a_mount() -> None:
    """Enough for a network; to simulate, the first that lacks one is named, and golden frames spread them evenly."""
    content = {"name": "mine", "cameras": [{"name": n} for n in "abc"], "lidars": [{"name": "top"}]}
    rig = parse_config({"name": "a", "rig": content}, "a.yaml").rig
    with one_line_error(exactly="rig mine: top has no `mount`, its calibration; add it"):
        rig.require_calibration()
    spread = rig.calibrated()
    assert [camera.mount and camera.mount.yaw for camera in spread.cameras] == [0, 120, 240]
    with one_line_error(exactly="rig mine: a has no `lens`, its calibration; add it"):
        spread.require_calibration()


def test_the_order_by_view() -> None:
    yaws = {each.name: np.radians(each.mount.yaw) for each in RIG.cameras if each.mount}
    assert ordered_by_view(yaws) == (
        ["CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT"],
        ["CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT"],
    )
    yaws = {each.name: np.radians(each.mount.yaw) for each in load_rig("truck").cameras if each.mount}
    assert ordered_by_view(yaws) == (
        ["CAMERA_LEFT_FRONT", "CAMERA_RIGHT_FRONT"],
        ["CAMERA_LEFT_BACK", "CAMERA_RIGHT_BACK"],
    )


def sweep(points: np.ndarray, timestamp: int, mount: Mount, driven: float = 0.0) -> Sweep:
    rows = np.column_stack([points, np.full(len(points), 9.0), np.zeros(len(points))]).astype(np.float32)
    pose = np.eye(4)
    pose[0, 3] = driven
    return Sweep(rows, timestamp, pose, mount.ego_from_mount)


def test_lidars_are_joined_at_their_own_times() -> None:
    """The same places of the world, seen by two LiDARs at different times from a vehicle that drives at 10 m/s."""
    rng = np.random.default_rng(0)
    places = rng.uniform([5, -20, 0], [30, 20, 2], (50, 3))
    mounts = Mount(position=(1.0, 0.0, 2.0), yaw=-90.0), Mount(position=(-1.0, 0.5, 2.5), yaw=135.0, pitch=10.0)

    def seen(mount: Mount, time: float) -> Sweep:
        pose = np.eye(4)
        pose[0, 3] = 10 * time
        local = np.linalg.inv(pose @ mount.ego_from_mount)
        return sweep(places @ local[:3, :3].T + local[:3, 3], round(1e6 * (100 + time)), mount, 10 * time)

    sweeps = {0: [seen(mounts[0], 0.0), seen(mounts[0], -0.05)], 1: [seen(mounts[1], 0.01), seen(mounts[1], -0.04)]}
    points, lidars, _ = join_lidars(sweeps, 100_000_000, np.eye(4), None)
    assert points is not None
    assert lidars is not None
    np.testing.assert_allclose(points[:, :3], np.tile(places, (4, 1)), atol=1e-4)
    np.testing.assert_allclose(points[::50, 4], [-0.01, 0.0, 0.04, 0.05], atol=1e-6)
    assert lidars[::50].tolist() == [1, 0, 1, 0]
    frame = Frame("t", 0, "ego", np.eye(4), np.eye(4), points, {}, lidar_of_point=lidars)
    assert frame.of_lidar(0).points is not None
    np.testing.assert_array_equal(frame.of_lidar(1).points, points[lidars == 1])
    assert not frame.has_lidar(2)
    assert len(frame.keyframe_points) == 100
    assert join_lidars({0: [], 1: []}, 0, np.eye(4), None) == (None, None, None)


def test_the_own_vehicle_is_cropped_in_its_own_frame() -> None:
    own = Box(center=(1.0, 0.0, 1.0), size=(4.0, 2.0, 2.0))
    mount = Mount(position=(1.0, 0.0, 2.5), yaw=90.0, pitch=20.0)
    rng = np.random.default_rng(1)
    ego = rng.uniform([-4, -4, -1], [6, 4, 4], (2000, 3))
    ego = ego[(np.abs(np.abs(ego - own.center) - np.array(own.size) / 2) > 1e-4).all(axis=1)]
    local = np.linalg.inv(mount.ego_from_mount)
    points, _, _ = join_lidars({0: [sweep(ego @ local[:3, :3].T + local[:3, 3], 0, mount)]}, 0, np.eye(4), own)
    assert points is not None
    outside = ~((np.abs(ego - own.center) <= np.array(own.size) / 2).all(axis=1))
    assert 0 < (~outside).sum() < len(ego)
    np.testing.assert_allclose(points[:, :3], ego[outside], atol=1e-5)
