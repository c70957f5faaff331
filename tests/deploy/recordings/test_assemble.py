"""Frames from messages: what is late, missing, repeated, out of order or between two poses, and when points were."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
from commands import one_line_error
from hypothesis import given
from hypothesis import strategies as st
from recordings import (
    TYPES,
    Sent,
    assemble,
    assert_equal_drives,
    assert_equal_frames,
    edit,
    message,
    nuscenes_topics,
    write_raw_mcap,
)
from scipy.spatial.transform import Rotation, Slerp
from vocabulary import CAMERAS, RIG

from deploy.log import header, make
from deploy.log import transform as transform_message
from deploy.recordings.drives import RecordedDrive
from deploy.recordings.messages import CorruptMessage, Transform
from deploy.recordings.topics import LidarTopic, Topics, load_topics
from deploy.recordings.transforms import MOST_FRAMES, Transforms
from perception.datasets.sweeps import SweepMotion, compensate
from perception.frame import Frame
from perception.geometry import quaternion, rotation_about
from perception.grid import BevGrid
from perception.rig import Rig
from perception.sensors.camera.config import CameraBranch
from perception.sensors.inputs import InputSpec
from perception.sensors.lidar.config import Lidar

LIDAR, FRONT = "/lidar_top", "/cam_front/image_rect_compressed"
UNSAID = {"token": "", "scene": "", "location": "", "position": None}


@pytest.fixture(scope="module")
def expected(log: list[Sent]) -> list[Frame]:
    return assemble(log)[0]


def numbers(log: list[Sent], topic: str) -> list[int]:
    return [i for i, each in enumerate(log) if each.topic == topic]


def test_repeated_messages_are_counted_and_change_nothing(log: list[Sent], expected: list[Frame]) -> None:
    frames, counts = assemble([each for each in log for _ in range(2)])
    assert_equal_drives(frames, expected)
    duplicated = counts.summary()["duplicated"]
    assert (duplicated[LIDAR], duplicated[FRONT], duplicated["/keyframe"]) == (6, 3, 3)
    assert duplicated["/tf"] == len(numbers(log, "/tf"))


def test_messages_out_of_order_are_counted_and_change_nothing(log: list[Sent], expected: list[Frame]) -> None:
    """Neighbours swapped all along: every message is at another place, within the time that frames wait."""
    spare = [*log]
    for i in range(1, len(spare) - 1, 2):
        spare[i], spare[i + 1] = spare[i + 1], spare[i]
    frames, counts = assemble(spare, nuscenes_topics(wait=0.4))
    assert_equal_drives(frames, expected)
    assert "late" not in counts.summary()
    a, b = numbers(log, LIDAR)[:2]  # a sweep and its keyframe
    spare = [*log]
    spare[a], spare[b] = spare[b]._replace(time=log[a].time), spare[a]._replace(time=log[b].time)
    frames, counts = assemble(spare)
    assert_equal_frames(frames[0], expected[0])
    assert counts.summary()["out_of_order"] == {LIDAR: 1}


def test_a_message_that_is_late_is_counted_and_missing(log: list[Sent], expected: list[Frame]) -> None:
    """The keyframe's wait is over when a later message comes."""
    late = [*log]
    message = late.pop(numbers(log, FRONT)[0])
    late.insert(numbers(late, LIDAR)[2] + 1, message._replace(time=log[numbers(log, LIDAR)[2]].time + 1))
    frames, counts = assemble(late)
    assert "CAM_FRONT" not in frames[0].cameras
    assert_equal_frames(replace(expected[0], cameras=frames[0].cameras), frames[0])
    assert_equal_frames(frames[1], expected[1])
    assert (counts.summary()["late"], counts.summary()["missing"]) == ({FRONT: 1}, {"CAM_FRONT": 1})


def test_the_tolerance_decides_which_picture_belongs_to_a_frame(log: list[Sent]) -> None:
    """The closest in time, on either side, at most the tolerance away."""
    keyframe, first = log[numbers(log, "/keyframe")[1]].time, log[numbers(log, FRONT)[1]]
    others = [each for each in log if each.topic != FRONT]
    cut = next(i for i, each in enumerate(others) if each.time > keyframe)
    for offsets, tolerance, chosen in (
        ([-60_000], 0.06, -60_000),
        ([-60_001], 0.06, None),
        ([60_001, 50_000], 0.06, 50_000),
        ([-20_000, 15_000, 30_000], 0.06, 15_000),
        ([15_000], 0.01, None),
    ):
        pictures = [edit(first, stamp=keyframe + offset, time=keyframe) for offset in offsets]
        frames, _ = assemble([*others[:cut], *pictures, *others[cut:]], nuscenes_topics(tolerance=tolerance))
        camera = frames[1].cameras.get("CAM_FRONT")
        assert (camera and camera.timestamp - keyframe) == chosen


def transform(stamp: int, parent: str, child: str, place: Any = (1, 1, 1), turn: Rotation | None = None) -> Transform:
    x, y, z, w = (turn or Rotation.identity()).as_quat()
    return Transform(stamp, parent, child, np.asarray(place, float), np.array([w, x, y, z]))


@pytest.mark.parametrize("seed", range(4))
def test_interpolation_is_scipys(seed: int) -> None:
    """Also where the quaternions point away from each other: q and -q are one rotation."""
    turns, places = Rotation.random(2, random_state=seed), np.random.default_rng(0).normal(size=(2, 3))
    away = Rotation.from_quat(-turns[1].as_quat() * np.sign(turns[0].as_quat() @ turns[1].as_quat()))
    transforms = Transforms()
    for stamp, place, turn in zip((1_000_000, 1_800_000), places, (turns[0], away), strict=True):
        assert transforms.add(transform(stamp, "odom", "base", place, turn), stamp)
    turned = Rotation.from_euler("z", 90, degrees=True)
    transforms.add(transform(0, "map", "odom", (1, 2, 3), turned), None)
    for share in (0.0, 0.1, 0.5, 0.99, 1.0):
        pose = transforms.pose("map", "base", 1_000_000 + round(800_000 * share))
        place, turn = places[0] + share * (places[1] - places[0]), Slerp([0, 1], turns)(share)
        np.testing.assert_allclose(pose[:3, :3], (turned * turn).as_matrix(), atol=1e-12)
        np.testing.assert_allclose(pose[:3, 3], np.add(turned.apply(place), [1, 2, 3]), atol=1e-12)


def test_a_pose_that_is_not_known_is_not_made_up() -> None:
    """And a ring of frames has no root."""
    transforms = Transforms()
    for stamp in (1_000_000, 3_000_000):
        transforms.add(transform(stamp, "map", "base"), stamp)
    for known, stamps in (
        (True, [950_000, 1_000_000, 1_050_000, 2_950_000, 3_050_000]),
        (False, [949_999, 1_050_001, 2_000_000, 2_949_999, 3_050_001]),
    ):
        assert [transforms.pose("map", "base", stamp) is not None for stamp in stamps] == [known] * 5
    assert transforms.pose("map", "other", 1_000_000) is None
    for parent, child in (("a", "b"), ("b", "c"), ("c", "a")):
        transforms.add(transform(0, parent, child), None)
    assert transforms.pose("root", "a", None) is None
    transforms.add(transform(0, "root", "b"), None)
    np.testing.assert_array_equal(transforms.pose("root", "a", None)[:3, 3], [3, 3, 3])


def test_the_vehicle_has_a_pose_among_any_number_of_objects() -> None:
    """Frames of tracked objects fill all places, before the vehicle's come and after; mountings that came once stay."""
    transforms = Transforms()
    transforms.add(transform(0, "base", "lidar"), None)
    for tick in range(20):
        for i in range(3 * MOST_FRAMES):
            transforms.add(transform(tick, "map", f"object {tick} {i}"), tick)
        assert len(transforms._edges) <= MOST_FRAMES
        transforms.add(transform(1000 * tick, "map", "odom"), 1000 * tick)
        transforms.add(transform(1000 * tick, "odom", "base"), 1000 * tick)
        for stamp in range(0, 1000 * tick + 1, 500):
            assert transforms.pose("map", "lidar", stamp) is not None
    for i in range(MOST_FRAMES - 3):
        transforms.add(transform(0, "base", f"link {i}"), None)
    with pytest.raises(CorruptMessage, match="more than 64 frames of reference"):
        transforms.add(transform(0, "base", "one more"), None)


def test_without_keyframes_sweeps_set_the_pace(log: list[Sent], expected: list[Frame]) -> None:
    """From the first sweep on, every 0.5 s; every 0.25 s takes every sweep. Tokens are drive and stamp."""
    stamps = [log[i].time for i in numbers(log, LIDAR)]
    frames, counts = assemble(log, nuscenes_topics(keyframes=None), keyframed=False)
    assert [frame.timestamp for frame in frames] == stamps[::2]
    assert counts.missing == dict.fromkeys(CAMERAS, 3)  # pictures are at the other sweeps
    frames, _ = assemble(log, nuscenes_topics(keyframes=None, period=0.25), keyframed=False)
    assert [frame.token for frame in frames] == [f"log@{stamp}" for stamp in stamps]
    for a, b in zip(frames[1::2], expected, strict=True):
        assert_equal_frames(replace(a, **UNSAID), replace(b, **UNSAID, conditions=a.conditions))
    # Without LiDAR, pictures do. A LiDAR that should be there may be late: pictures wait half a period for it.
    silent, seeing = [each for each in log if each.topic != LIDAR], {"keyframed": False, "camera": CameraBranch()}
    frames, counts = assemble(silent, nuscenes_topics(keyframes=None, lidars={}), **seeing)
    assert [(frame.timestamp, len(frame.cameras)) for frame in frames] == [
        (log[i].time, 6) for i in numbers(log, FRONT)
    ]
    assert counts.missing == {"LIDAR_TOP": 3}
    assert len(assemble(silent, nuscenes_topics(keyframes=None), **seeing)[0]) == 1
    assert assemble(silent, nuscenes_topics(keyframes=None), keyframed=False)[0] == []  # the network uses no picture


def test_the_frame_of_the_lidar(log: list[Sent], expected: list[Frame]) -> None:
    """As the map of topics names it, else as the header does; without a transform of either it is missing."""

    def header_of(message: Sent) -> Any:
        return replace(TYPES.deserialize_cdr(message.data, message.type_name).header, frame_id="nowhere")

    def named(frame: str | None) -> Topics:
        return nuscenes_topics(lidars={"LIDAR_TOP": LidarTopic(topic=LIDAR, frame=frame)})

    for frame in ("lidar_top", "elsewhere", None):
        assert_equal_frames(assemble(log, named(frame))[0][0], expected[0])
    other = [edit(each, header=header_of(each)) if each.topic == LIDAR else each for each in log]
    assert_equal_frames(assemble(other, named("lidar_top"))[0][0], expected[0])
    frames, counts = assemble(other, named(None))
    assert [frame.points for frame in frames] == [None] * 3
    assert counts.summary()["reasons"] == {LIDAR: {"no transform from the sensor to the vehicle": 3}}


def test_a_map_of_topics_or_what_is_wrong_with_it(tmp_path: Path) -> None:
    path, front = tmp_path / "topics.yaml", {"image": "/front/image", "info": "/front/info", "frame": "front"}
    changes = {"global_frame": "odom", "lidars": {"LIDAR_TOP": {"topic": "/top"}}, "cameras": {"CAM_FRONT": front}}
    for text, expected in ((json.dumps(changes), changes), ("", {})):
        path.write_text(text)
        assert load_topics(path, RIG) == nuscenes_topics(**expected)
    for text, says in (
        ("- a", "(top level): input should be a valid dictionary"),
        ("tolerance: -1.0", "tolerance: input should be greater than 0, got -1.0"),
        ("lidars: {LIDAR_TOP: {topic: /top, time_unit: minutes}}", "lidars.LIDAR_TOP.time_unit: "),
        ("cameras: {CAM_FRONT: {image: /a, info: /b, offset: 35}}", "input should be less than or equal to "),
        ("cameras: {FRONT: {image: /a, info: /b}}", "cameras: FRONT is none of the rig nuscenes; it has CAM_FRONT"),
        ("cameras: {CAM_FRONT: {image: /a, info: /a}}", "(top level): /a is named twice; a topic has one meaning"),
        ("{lidars: {}, cameras: {}}", "(top level): neither a LiDAR nor a camera; name at least one"),
    ):
        path.write_text(text)
        with one_line_error(at=f"{path}: ", says=says):
            load_topics(path, RIG)


# Sweeps whose points have times, of a vehicle that drives and turns: points lie where they are.

START = 1_700_000_000_000_000  # us
MINE = Rig.model_validate(
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
    "lidars": {name: {"topic": f"/{name}"} for name in MINE.sensors.lidars},
    "cameras": {"eye": {"image": "/eye", "info": "/eye/info"}},
    "calibration": "rig",
}
Pose = Callable[[float], np.ndarray]


def rigid(rotation: np.ndarray, place: np.ndarray) -> np.ndarray:
    return np.block([[rotation, np.reshape(place, (3, 1))], [np.zeros((1, 3)), np.ones((1, 1))]])


def steady(velocity: np.ndarray, axis: np.ndarray, rate: float, start: np.ndarray | None = None) -> Pose:
    """global_from_ego at a time (s) of a vehicle that drives straight ahead and turns at constant speed."""
    first = np.eye(4) if start is None else start
    return lambda time: rigid(first[:3, :3] @ rotation_about(axis, rate * time), first[:3, 3] + time * velocity)


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
    start = rigid(rotation_about(np.array([0.6, 0.8, 0.0]), 3 * data.draw(NUMBER)), 3000 * place)
    pose = steady(40 * velocity, axis, 3 * data.draw(NUMBER), start)
    mount = rigid(rotation_about(axis, 2.0), 3 * place)
    knots = np.cumsum([-0.3, *data.draw(st.lists(st.floats(0.004, 0.3), min_size=1, max_size=20))])
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    times = random.uniform(knots[0], knots[-1], 50)
    world = start[:3, 3] + random.uniform(-60, 60, (50, 3))
    motion = SweepMotion(times, knots, np.stack([pose(time) for time in knots]))
    reference = np.linalg.inv(pose(0.0))
    found = compensate(seen(world, times, pose, mount), motion, mount, reference)
    np.testing.assert_allclose(found, placed(world, reference), atol=1e-6)


class Times(NamedTuple):
    """How a driver writes the times of points."""

    field: str
    type: str
    unit: float  # s
    since: int = 0  # us, START if they are since 1970


OUSTER, VELODYNE, HESAI = Times("t", "<u4", 1e-9), Times("time", "<f4", 1.0), Times("timestamp", "<f8", 1.0, START)
DRIVERS = {
    "ouster": OUSTER,
    "velodyne": VELODYNE,
    "hesai": HESAI,
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


def moved(stamp: int, pose: np.ndarray) -> Sent:
    seven = np.array([*pose[:3, 3], *quaternion(pose[:3, :3])])
    transforms = [transform_message(stamp, "map", "base_link", seven)]
    return message("/tf", stamp, make("tf2_msgs/msg/TFMessage", transforms=transforms))


DRIVE = steady(np.array([14.0, 3.0, 0.2]), np.array([0.0, 0.0, 1.0]), 0.5)
POSES = [moved(START + 10_000 * i, DRIVE(0.01 * i)) for i in range(-40, 41)]
ANGLES, RANGES, HEIGHTS = np.random.default_rng(1).uniform([[-3], [8], [0]], [[3], [25], [4]], (3, 300))
WORLD = np.stack([RANGES * np.cos(ANGLES), RANGES * np.sin(ANGLES), HEIGHTS], axis=1)
EXACT = 8 * float(np.spacing(np.float32(32)))  # m, of float32 coordinates within 32 m


def frames_of(path: Path, log: list[Sent], sweeps: int = 0, **topics: Any) -> tuple[list[Frame], dict[str, Any]]:
    """The frames of a recording, and what was counted."""
    write_raw_mcap(path, sorted(log, key=lambda each: each.time))
    spec = InputSpec(BevGrid(reference="ego"), {"lidar": Lidar(sweeps=sweeps)}, MINE)
    drive = RecordedDrive(path, Topics.model_validate(TOPICS | topics), spec)
    return list(drive.frames()), drive.counts.summary()


def scan(name: str, stamp: int, how: Times | None, span: tuple[float, float] = (0.0, 0.1), late: int = 0) -> Sent:
    """A sweep of WORLD by a LiDAR at times within the span (s) after the stamp; the message is stamped late (us)."""
    number = MINE.sensors.lidars.index(name)
    times = np.random.default_rng(number).uniform(*span, len(WORLD)).round(6)
    points = seen(WORLD, times + 1e-6 * (stamp - START), DRIVE, MINE.lidars[number].ego_from_sensor)
    rows = packed(points, times, stamp, how)
    fields = [
        make("sensor_msgs/msg/PointField", name=name, offset=offset, datatype=DATATYPES.get(kind.str, 0), count=1)
        for name, (kind, offset) in rows.dtype.fields.items()
    ]
    data, stamp = rows.view(np.uint8).ravel(), stamp + late
    content = make(
        "sensor_msgs/msg/PointCloud2", header=header(stamp, name), height=1, width=len(rows), fields=fields,
        is_bigendian=False, point_step=rows.itemsize, row_step=len(data), data=data, is_dense=True,
    )  # fmt: skip
    return message(f"/{name}", stamp, content)


def off(frame: Frame, lidar: int) -> float:
    """m, the largest distance of a coordinate from where the point is in the frame."""
    here = placed(WORLD, np.linalg.inv(frame.global_from_ego))
    return float(np.abs(frame.of_lidar(lidar).points[:, :3].astype(np.float64) - here).max())


@pytest.mark.parametrize("driver", DRIVERS)
def test_times_as_drivers_write_them(tmp_path: Path, driver: str) -> None:
    """Of two LiDARs, each at its own times."""
    span = (-0.1, 0.0) if driver == "velodyne" else (0.0, 0.1)
    log = [*POSES, scan("top", START, DRIVERS[driver], span), scan("rear", START + 30_000, VELODYNE, (-0.1, 0.0))]
    (frame,), counts = frames_of(tmp_path / "a.mcap", log)
    assert max(off(frame, 0), off(frame, 1)) <= EXACT
    np.testing.assert_allclose(np.unique(frame.points[:, 4]), [-0.03, 0.0], atol=1e-6)
    assert "uncompensated" not in counts


def test_a_driver_that_compensates_itself_and_a_field_of_another_name(tmp_path: Path) -> None:
    named = {"time_field": "stamp_us", "time_unit": "us"}
    log = [*POSES, scan("top", START, Times("stamp_us", "<u4", 1e-6))]
    for more, exact in (({}, False), (named, True), (named | {"compensated": True}, False)):
        (frame,), counts = frames_of(tmp_path / "a.mcap", log, lidars={"top": {"topic": "/top", **more}})
        assert off(frame, 0) <= EXACT if exact else off(frame, 0) > 0.5
        assert "uncompensated" not in counts


@pytest.mark.parametrize(
    ("how", "poses", "given", "counted"),
    [
        (Times("t", "<u4", 1e-6), POSES, {}, True),  # us, which nothing says
        (Times("t", "<f8", 1e-6), POSES, {}, True),
        (Times("time", "<f8", 1.0, START), POSES, {"time_unit": "ms"}, True),
        (None, POSES, {"time_field": "t"}, True),
        (OUSTER, POSES[:41], {}, True),  # the last pose is of the sweep's start
        (OUSTER, POSES, {}, False),  # all at the stamp
    ],
)
def test_times_that_cannot_be_used_are_counted(
    tmp_path: Path, how: Times | None, poses: list[Sent], given: dict[str, str], counted: bool
) -> None:
    """The sweep is used as of one time, as without times."""
    span = (0.0, 0.1 if counted else 0.0)
    log = [*poses, scan("top", START, how, span)]
    (told,), counts = frames_of(tmp_path / "a.mcap", log, lidars={"top": {"topic": "/top", **given}})
    (plain,), without = frames_of(tmp_path / "b.mcap", [*poses, scan("top", START, None, span)])
    assert counts.get("uncompensated") == ({"/top": 1} if counted else None)
    assert "uncompensated" not in without
    np.testing.assert_array_equal(told.points, plain.points)


@pytest.mark.parametrize("timed", [False, True])
def test_a_frame_whose_poses_were_extrapolated_is_counted(timed: bool, tmp_path: Path) -> None:
    """By the time of its last point or, where no pose within 50 ms is known for that, of its sweep."""
    last = int(1e6 * np.random.default_rng(0).uniform(0, 0.03, len(WORLD)).max()) if timed else 0
    sweep = scan("top", START, OUSTER if timed else None, (0.0, 0.03 * timed))
    held_for = [limit + more for limit in (0, 20_000, 50_000) for more in ((-3, 3) if timed else (0, 1))]
    for newest in {needed - held for needed in (0, last) for held in held_for if needed - held >= -50_000}:
        held = max(each - newest for each in (0, last) if each - newest <= 50_000)
        poses = [moved(START + newest - 80_000 * i, np.eye(4)) for i in range(3)]
        _, counts = frames_of(tmp_path / "a.mcap", [*poses, sweep])
        assert counts.get("extrapolated") == ({"/tf": 1} if 0 < held <= 20_000 else None)
        assert counts.get("stale") == ({"/tf": 1} if held > 20_000 else None)


def test_a_pose_that_comes_later_takes_the_place_of_one_that_was_held(tmp_path: Path) -> None:
    """Of a sweep that waits, and of one that a second frame uses. The first frame is assembled at 0.25 s."""
    poses = [each._replace(time=START + (260_000 if each.time > START + 60_000 else 0)) for each in POSES]
    sweeps = [scan("top", START + 100_000 * i, OUSTER) for i in range(2)]
    (_, frame), counts = frames_of(tmp_path / "a.mcap", [*poses, *sweeps], sweeps=1, period=0.1)
    assert counts["stale"] == {"/tf": 1}
    for sweep in range(2):
        points = frame.points[frame.sweep_of_point == sweep]
        assert off(replace(frame, points=points), 0) <= EXACT


@pytest.mark.parametrize(
    ("ahead", "frames", "corrupt"),
    [
        ({50: 9.0}, [*range(0, 50, 5), *range(51, 100, 5)], 1),  # s by which sweeps are stamped ahead, by their number
        ({50: -9.0}, [*range(0, 50, 5), *range(51, 100, 5)], 1),
        ({0: 9.0}, [*range(2, 100, 5)], 1),
        (dict.fromkeys(range(50, 100), 9.0), [*range(0, 50, 5), *range(51, 100, 5)], 1),  # the clock was set
        (dict.fromkeys(range(50, 100), -4.03), [*range(0, 50, 5), *range(51, 100, 5)], 1),
        (dict.fromkeys(range(100), 100.0), [*range(0, 100, 5)], 0),  # another clock than the recorder's
    ],
)
def test_a_stamp_far_from_its_recording_time_is_damage(
    tmp_path: Path, ahead: dict[int, float], frames: list[int], corrupt: int
) -> None:
    """10 Hz, a frame every 0.5 s: the next sweep makes the frame instead, also by a clock that was set."""
    log, sweep = list[Sent](), scan("top", START, None)
    for i in range(100):
        time, early = START + 100_000 * i, round(1e6 * ahead.get(i, 0))
        clock = early if len(ahead) > 1 else 0
        log += [moved(time + clock, np.eye(4))._replace(time=time), edit(sweep, stamp=time + early, time=time)]
    found, counts = frames_of(tmp_path / "a.mcap", log)
    stamps = [START + 100_000 * i + round(1e6 * ahead.get(i, 0)) for i in frames]
    assert [frame.timestamp for frame in found] == stamps
    assert len({frame.token for frame in found}) == len(found)
    assert counts["reasons"] == ({"/top": {"a stamp far from its recording time": 1}} if corrupt else {})


def picture(stamp: int, grey: int) -> Sent:
    data = cv2.imencode(".png", np.full((10, 16, 3), grey, np.uint8))[1].ravel()
    content = make("sensor_msgs/msg/CompressedImage", header=header(stamp, "eye"), format="png", data=data)
    return message("/eye", stamp, content)


def test_keyframes_of_a_lidar_that_is_stamped_late(log: list[Sent], expected: list[Frame]) -> None:
    """Its keyframes name sweeps, the earlier ones too, by these late stamps."""
    late, sent = 70_000, list[Sent]()
    for each in log:
        if each.topic == LIDAR:
            sent.append(edit(each, stamp=each.time + late))
        elif each.topic == "/keyframe":
            known = json.loads(TYPES.deserialize_cdr(each.data, each.type_name).data)
            known |= {"stamp": known["stamp"] + late, "sweeps": [stamp + late for stamp in known["sweeps"]]}
            sent.append(edit(each, data=json.dumps(known)))
        else:
            sent.append(each)
    lidars = {"LIDAR_TOP": {"topic": LIDAR, "offset": -1e-6 * late}}
    frames, _ = assemble(sent, nuscenes_topics(lidars=lidars))
    assert_equal_drives(frames, expected)
    assert all(len(np.unique(frame.sweep_of_point)) == 2 for frame in frames)


def test_a_sensor_that_is_stamped_late_has_the_pose_of_its_exposure(tmp_path: Path) -> None:
    """Pictures 80 ms after the exposure, which is at the time of the sweep; the one before is stamped nearer to it.

    Of a sweep times after the stamp go with it; those since 1970 stay as they are.
    """
    sweeps = [scan("top", START + 100_000 * i, OUSTER, (0.0, 0.05)) for i in (-1, 0, 1)]
    pictures = [picture(START + 100_000 * i + 80_000, 100 + i) for i in range(-2, 2)]
    for offset, grey, exposed in ((-0.08, 100, 0.0), (0.0, 99, -0.02)):
        cameras = {"eye": {"image": "/eye", "info": "/eye/info", "rectified": True, "offset": offset}}
        frames, _ = frames_of(tmp_path / "a.mcap", [*POSES, *sweeps, *pictures], cameras=cameras, period=0.1)
        camera = frames[1].cameras["eye"]
        assert (camera.image.max(), camera.timestamp) == (grey, START + round(1e6 * exposed))
        np.testing.assert_allclose(camera.global_from_ego, DRIVE(exposed), atol=1e-9)
    for how in (OUSTER, HESAI, None):
        late = scan("top", START, how, (0.0, 0.0 if how is None else 0.1), late=70_000)
        (frame,), _ = frames_of(tmp_path / "a.mcap", [*POSES, late], lidars={"top": {"topic": "/top", "offset": -0.07}})
        assert frame.timestamp == START
        assert off(frame, 0) <= EXACT
