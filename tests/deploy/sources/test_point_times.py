"""Sweeps whose points have times, of a vehicle that drives and turns: points lie where they are."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
from foxglove_schemas_protobuf.PackedElementField_pb2 import PackedElementField
from foxglove_schemas_protobuf.PointCloud_pb2 import PointCloud
from hypothesis import given
from hypothesis import strategies as st
from make_log import TYPES, header, make, transform
from recordings import Sent, write_raw_mcap
from refusals import one_line_error

from deploy.replay.sources import foxglove
from deploy.replay.sources.messages import Cloud
from deploy.replay.sources.point_times import point_times
from deploy.replay.sources.recorded_drive import RecordedDrive
from deploy.replay.sources.topics import LidarTopic, Topics, load_topics
from perception.config import Lidar
from perception.frame import Frame
from perception.grid import BevGrid
from perception.rig import Rig
from perception.rotations import quaternion, turned
from perception.sensors.inputs import InputSpec
from perception.sensors.lidar.compensation import Motion, compensated

START = 1_700_000_000_000_000  # us
RIG = Rig.model_validate(
    {
        "name": "mine",
        "lidars": [
            {"name": "top", "mount": {"position": (1.0, 0.2, 1.9), "yaw": 90.0, "pitch": 3.0}},
            {"name": "rear", "mount": {"position": (-2.0, 0.0, 1.2), "yaw": 180.0}},
        ],
        "cameras": [{"name": "eye", "mount": {"position": (1.5, 0, 1.5)}, "lens": {"focal": 10.0}, "size": (16, 10)}],
    }
)
TOPICS: dict[str, Any] = {
    "lidars": {name: {"topic": f"/{name}"} for name in RIG.sensors.lidars},
    "cameras": {"eye": {"image": "/eye", "info": "/eye/info"}},
    "calibration": "rig",
}
Pose = Callable[[float], np.ndarray]


def rigid(rotation: np.ndarray, place: np.ndarray) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation, place
    return pose


def steady(velocity: np.ndarray, axis: np.ndarray, rate: float, start: np.ndarray | None = None) -> Pose:
    """global_from_ego at a time (s) of a vehicle that drives straight ahead and turns at constant speed."""
    first = np.eye(4) if start is None else start
    return lambda time: rigid(first[:3, :3] @ turned(axis, rate * time), first[:3, 3] + time * velocity)


def seen(world: np.ndarray, times: np.ndarray, pose: Pose, mount: np.ndarray) -> np.ndarray:
    """(N, 3) world points in the LiDAR's frame, each at its time."""
    here = np.stack([np.linalg.inv(pose(time) @ mount) for time in times])
    return np.einsum("nij,nj->ni", here[:, :3, :3], world) + here[:, :3, 3]


def placed(world: np.ndarray, reference_from_global: np.ndarray) -> np.ndarray:
    return world @ reference_from_global[:3, :3].T + reference_from_global[:3, 3]


NUMBER = st.floats(-1, 1, allow_subnormal=False)


@given(st.data())
def test_scattered_posts_lie_where_they_are(data: st.DataObject) -> None:
    """Whatever the motion, the mounting and the moments of points and poses."""
    velocity, axis, place = (np.array(data.draw(st.tuples(*[NUMBER] * 3))) for _ in range(3))
    axis = axis / np.linalg.norm(axis) if np.linalg.norm(axis) > 1e-3 else np.array([0.0, 0.0, 1.0])
    start = rigid(turned(np.array([0.6, 0.8, 0.0]), 3 * data.draw(NUMBER)), 3000 * place)
    pose = steady(40 * velocity, axis, 3 * data.draw(NUMBER), start)
    mount = rigid(turned(axis, 2.0), 3 * place)
    knots = np.cumsum([-0.3, *data.draw(st.lists(st.floats(0.004, 0.3), min_size=1, max_size=20))])
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    times = random.uniform(knots[0], knots[-1], 50)
    world = start[:3, 3] + random.uniform(-60, 60, (50, 3))
    motion = Motion(times, knots, np.stack([pose(time) for time in knots]))
    reference = np.linalg.inv(pose(0.0))
    found = compensated(seen(world, times, pose, mount), motion, mount, reference)
    np.testing.assert_allclose(found, placed(world, reference), atol=1e-6)


def test_on_a_bend_only_the_chord_between_two_poses_is_off() -> None:
    """By at most speed x rate x step^2 / 8, the rise of the arc above its chord."""
    speed, rate, step = 15.0, 0.6, 0.02
    axis = np.array([0.0, 0.0, 1.0])

    def pose(time: float) -> np.ndarray:
        angle = rate * time
        place = speed / rate * np.array([np.sin(angle), 1 - np.cos(angle), 0])
        return rigid(turned(axis, angle), place)

    random = np.random.default_rng(0)
    knots, times = np.arange(-5, 1) * step, random.uniform(-0.1, 0, 200)
    world, mount = random.uniform(-40, 40, (200, 3)), RIG.lidars[0].ego_from_sensor
    motion = Motion(times, knots, np.stack([pose(time) for time in knots]))
    found = compensated(seen(world, times, pose, mount), motion, mount, np.eye(4))
    off = np.linalg.norm(found - world, axis=1)
    assert off.max() <= speed * rate * step**2 / 8 * 1.001
    assert off.max() > 1e-4


class Times(NamedTuple):
    """How a driver writes the times of points."""

    field: str
    type: str
    unit: float  # s
    since: int = 0  # us, START if they are since 1970


OUSTER, VELODYNE = Times("t", "<u4", 1e-9), Times("time", "<f4", 1.0)
DRIVERS = {
    "ouster": OUSTER,
    "velodyne": VELODYNE,
    "hesai": Times("timestamp", "<f8", 1.0, START),
    "livox": Times("timestamp", "<f8", 1e-9, START),
    "livox's own": Times("offset_time", "<u4", 1e-9),
    "nebula": Times("time_stamp", "<u4", 1e-9),
}
DATATYPES = {"<u4": 6, "<f4": 7, "<f8": 8}


def packed(points: np.ndarray, times: np.ndarray, stamp: int, how: Times | None) -> np.ndarray:
    """(N,) records as in a message; times (N,) s after the stamp (us)."""
    named = [] if how is None else [(how.field, how.type)]
    rows = np.zeros(len(points), [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), *named])
    rows["x"], rows["y"], rows["z"] = points.T
    if how is not None:
        counted = (1e-6 * (how.since and stamp) + times) / how.unit
        rows[how.field] = counted.round() if how.type[1] == "u" else counted
    return rows


def sent(topic: str, stamp: int, content: Any) -> Sent:
    type_name = content.__msgtype__
    return Sent(topic, type_name, stamp, bytes(TYPES.serialize_cdr(content, type_name)))


def cloud(topic: str, stamp: int, rows: np.ndarray) -> Sent:
    fields = [
        make("sensor_msgs/msg/PointField", name=name, offset=offset, datatype=DATATYPES.get(kind.str, 0), count=1)
        for name, (kind, offset) in (rows.dtype.fields or {}).items()
    ]
    data = rows.view(np.uint8).ravel()
    content = make(
        "sensor_msgs/msg/PointCloud2", header=header(stamp, topic[1:]), height=1, width=len(rows), fields=fields,
        is_bigendian=False, point_step=rows.itemsize, row_step=len(data), data=data, is_dense=True,
    )  # fmt: skip
    return sent(topic, stamp, content)


def moved(stamp: int, pose: np.ndarray) -> Sent:
    seven = np.array([*pose[:3, 3], *quaternion(pose[:3, :3])])
    return sent("/tf", stamp, make("tf2_msgs/msg/TFMessage", transforms=[transform(stamp, "map", "base_link", seven)]))


DRIVE = steady(np.array([14.0, 3.0, 0.2]), np.array([0.0, 0.0, 1.0]), 0.5)
POSES = [moved(START + 10_000 * i, DRIVE(0.01 * i)) for i in range(-40, 41)]
ANGLES, RANGES, HEIGHTS = np.random.default_rng(1).uniform([[-3], [8], [0]], [[3], [25], [4]], (3, 300))
WORLD = np.stack([RANGES * np.cos(ANGLES), RANGES * np.sin(ANGLES), HEIGHTS], axis=1)
EXACT = 8 * float(np.spacing(np.float32(32)))  # m, of float32 coordinates within 32 m


def frames_of(path: Path, log: list[Sent], **topics: Any) -> tuple[list[Frame], dict[str, Any]]:
    """The frames of a recording, and what was counted."""
    write_raw_mcap(path, sorted(log, key=lambda each: each.time))
    spec = InputSpec(BevGrid(reference="ego"), Lidar(sweeps=0), None, RIG)
    drive = RecordedDrive(path, Topics.model_validate(TOPICS | topics), spec)
    return list(drive.frames()), drive.counts.summary()


def scan(name: str, stamp: int, how: Times | None, span: tuple[float, float]) -> Sent:
    """A sweep of WORLD by one of the LiDARs at times within the span (s) after the stamp."""
    number = RIG.sensors.lidars.index(name)
    times = np.random.default_rng(number).uniform(*span, len(WORLD)).round(6)
    points = seen(WORLD, times + 1e-6 * (stamp - START), DRIVE, RIG.lidars[number].ego_from_sensor)
    return cloud(f"/{name}", stamp, packed(points, times, stamp, how))


def off(frame: Frame, lidar: int) -> float:
    """m, the largest distance of a coordinate from where the point is in the frame."""
    points = frame.of_lidar(lidar).points
    assert points is not None
    here = placed(WORLD, np.linalg.inv(frame.global_from_ego))
    return float(np.abs(points[:, :3].astype(np.float64) - here).max())


@pytest.mark.parametrize("driver", DRIVERS)
def test_times_as_drivers_write_them(tmp_path: Path, driver: str) -> None:
    """Of two LiDARs, each at its own times."""
    span = (-0.1, 0.0) if driver == "velodyne" else (0.0, 0.1)
    log = [*POSES, scan("top", START, DRIVERS[driver], span), scan("rear", START + 30_000, VELODYNE, (-0.1, 0.0))]
    (frame,), counts = frames_of(tmp_path / "a.mcap", log)
    assert off(frame, 0) <= EXACT
    assert off(frame, 1) <= EXACT
    assert frame.points is not None
    np.testing.assert_allclose(np.unique(frame.points[:, 4]), [-0.03, 0.0], atol=1e-6)
    assert "uncompensated" not in counts


def test_a_driver_that_compensates_itself_and_a_field_of_another_name(tmp_path: Path) -> None:
    own = Times("stamp_us", "<u4", 1e-6)
    log = [*POSES, scan("top", START, own, (0.0, 0.1))]
    for more, exact in (
        ({}, False),
        ({"time_field": "stamp_us", "time_unit": "us"}, True),
        ({"time_field": "stamp_us", "time_unit": "us", "compensated": True}, False),
    ):
        (frame,), counts = frames_of(tmp_path / "a.mcap", log, lidars={"top": {"topic": "/top", **more}})
        assert (off(frame, 0) <= EXACT) == exact
        assert exact or off(frame, 0) > 0.5
        assert "uncompensated" not in counts


@pytest.mark.parametrize(
    ("how", "poses", "given"),
    [
        (Times("t", "<u4", 1e-6), POSES, {}),  # us, which nothing says
        (Times("t", "<f8", 1e-6), POSES, {}),
        (Times("time", "<f8", 1.0, START), POSES, {"time_unit": "ms"}),
        (None, POSES, {"time_field": "t"}),
        (OUSTER, [each for each in POSES if each.time <= START], {}),  # the last pose is of the sweep's start
    ],
)
def test_times_that_cannot_be_used_are_counted(
    tmp_path: Path, how: Times | None, poses: list[Sent], given: dict[str, str]
) -> None:
    """The sweep is used as of one time, as without times."""
    span = (0.0, 0.1)
    sweeps = [scan("top", START, each, span) for each in (how, None)]
    (told,), counts = frames_of(tmp_path / "a.mcap", [*poses, sweeps[0]], lidars={"top": {"topic": "/top", **given}})
    (plain,), without = frames_of(tmp_path / "b.mcap", [*poses, sweeps[1]])
    assert counts["uncompensated"] == {"/top": 1}
    assert "uncompensated" not in without
    np.testing.assert_array_equal(told.points, plain.points)


def test_times_that_do_not_differ_from_the_stamp_change_no_byte(tmp_path: Path) -> None:
    (told,), _ = frames_of(tmp_path / "a.mcap", [*POSES, scan("top", START, OUSTER, (0.0, 0.0))])
    (plain,), _ = frames_of(tmp_path / "b.mcap", [*POSES, scan("top", START, None, (0.0, 0.0))])
    np.testing.assert_array_equal(told.points, plain.points)


def test_times_in_foxgloves_schema() -> None:
    times = np.array([-0.1, -0.05, 0.0])
    rows = packed(np.ones((3, 3)), times, START, VELODYNE)
    message = PointCloud(frame_id="top", point_stride=rows.itemsize, data=rows.tobytes())
    message.timestamp.FromMicroseconds(START)
    for name, (_, offset) in (rows.dtype.fields or {}).items():
        message.fields.append(PackedElementField(name=name, offset=offset, type=PackedElementField.FLOAT32))
    (content,) = foxglove.CONVERTERS["foxglove.PointCloud"](message)
    assert isinstance(content, Cloud)
    np.testing.assert_allclose(point_times(content, LidarTopic(topic="/top")), times, atol=1e-8)


def picture(stamp: int, grey: int) -> Sent:
    data = cv2.imencode(".png", np.full((10, 16, 3), grey, np.uint8))[1].ravel()
    return sent(
        "/eye", stamp, make("sensor_msgs/msg/CompressedImage", header=header(stamp, "eye"), format="png", data=data)
    )


def test_a_camera_that_is_stamped_late_has_the_pose_of_its_exposure(tmp_path: Path) -> None:
    """Stamped 80 ms after the exposure, which is at the time of the sweep; the one before is stamped nearer to it."""
    sweeps = [scan("top", START + 100_000 * i, OUSTER, (0.0, 0.05)) for i in (-1, 0, 1)]
    pictures = [picture(START + 100_000 * i + 80_000, 100 + i) for i in range(-2, 2)]
    for offset, grey, exposed in ((-0.08, 100, 0.0), (0.0, 99, -0.02)):
        cameras = {"eye": {"image": "/eye", "info": "/eye/info", "rectified": True, "offset": offset}}
        frames, _ = frames_of(tmp_path / "a.mcap", [*POSES, *sweeps, *pictures], cameras=cameras, period=0.1)
        camera = frames[1].cameras["eye"]
        assert camera.image.max() == grey
        assert camera.timestamp == START + round(1e6 * exposed)
        np.testing.assert_allclose(camera.global_from_ego, DRIVE(exposed), atol=1e-9)


def test_a_lidar_that_is_stamped_late_has_the_pose_of_its_sweep(tmp_path: Path) -> None:
    """Times after the stamp go with it; those since 1970 stay as they are."""
    for how in (OUSTER, DRIVERS["hesai"], None):
        span = (0.0, 0.0 if how is None else 0.1)
        on_time = scan("top", START, how, span)
        content = TYPES.deserialize_cdr(on_time.data, on_time.type_name)
        content.header.stamp.nanosec += 70_000_000  # type: ignore[attr-defined]
        late = sent("/top", START + 70_000, content)
        (frame,), _ = frames_of(tmp_path / "a.mcap", [*POSES, late], lidars={"top": {"topic": "/top", "offset": -0.07}})
        assert frame.timestamp == START
        assert off(frame, 0) <= EXACT


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lidars: {top: {topic: /top, time_unit: minutes}}", "topics.yaml: lidars.top.time_unit: "),
        (
            "cameras: {eye: {image: /eye, info: /info, offset: 35}}",
            "topics.yaml: cameras.eye.offset: .*less than or equal",
        ),
    ],
)
def test_a_wrong_map_of_topics_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "topics.yaml").write_text(text)
    with one_line_error(message):
        load_topics(tmp_path / "topics.yaml", RIG)
