"""Frames assembled as messages arrive are those of a replay; what a clock that is set while driving leaves of them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import TYPES, Sent, assemble, assert_equal_frames, edit, fix, message, nuscenes_topics, write_raw_mcap
from vocabulary import RIG, SENSORS

from deploy.log import header, make
from deploy.log import transform as transform_message
from deploy.recordings import ros
from deploy.recordings.assembler import Assembler, DriveInfo, ReadyFrame
from deploy.recordings.choice import FrameChoice
from deploy.recordings.counts import Counts
from deploy.recordings.drives import RecordedDrive
from deploy.recordings.latest import CameraPictures, Readings
from deploy.recordings.messages import Intrinsics, Picture, Transform
from deploy.recordings.stamps import SILENT, Arrivals
from deploy.recordings.topics import Topics
from deploy.recordings.transforms import MOST_POSES, Transforms
from perception.frame import Frame
from perception.grid import BevGrid
from perception.scene.signals import SignalConfig
from perception.sensors.camera import sensor
from perception.sensors.camera.config import CameraBranch, Image
from perception.sensors.inputs import InputSpec, prepare
from perception.sensors.lidar.config import Lidar

TICK = 20_000  # us
KEYFRAMES, SWEEPS = nuscenes_topics(), nuscenes_topics(keyframes=None)
BLIND = nuscenes_topics(keyframes=None, cameras={})
CAMERAS = {name: each.model_copy(update={"rectified": False}) for name, each in KEYFRAMES.cameras.items()}
RAW = KEYFRAMES.model_copy(update={"cameras": CAMERAS})
SEEING = InputSpec(
    BevGrid(reference="ego"), {"lidar": Lidar(sweeps=1), "camera": CameraBranch(image=Image(height=16, width=40))}, RIG
)
# Each comes in its own order; /tf_static before /tf, which begins alike.
ORDERED = (
    "/tf_static",
    "/tf",
    "/odometry",
    "/keyframe",
    "/lidar_top",
    *(f"/{camera.lower()}/{what}" for camera in SENSORS.cameras for what in ("camera_info", "image_rect_compressed")),
)


def arriving(log: Sequence[Sent], delays: Mapping[str, int]) -> list[tuple[int, Sent]]:
    """The messages with the times (us) at which they arrive, in that order; each sensor's own order stays.

    Args:
        delays: of topics, or what they begin with.
    """
    found = [(each.time + next((d for t, d in delays.items() if each.topic.startswith(t)), 0), each) for each in log]
    return sorted(found, key=lambda each: each[0])


def live(
    log: Sequence[tuple[int, Sent]], topics: Topics, counts: Counts, period: int = TICK
) -> Iterator[tuple[int, Frame]]:
    """The time (us) of each frame and the frame, as messages arrive, looking at the clock every so often.

    What a frame consists of is decided when it is ready: all are assembled at the end.
    """
    keyframed = topics.keyframes is not None
    assembler = Assembler(topics, SEEING, counts, DriveInfo("log"), keyframed, FrameChoice(), Readings({}))
    now, ready = log[0][0], list[tuple[int, ReadyFrame]]()
    for time, each in log:
        while now + period < time:
            now += period
            ready += ((now, frame) for frame in (*assembler.advance(now), *assembler.complete(now)))
        now = time
        ready += ((now, frame) for frame in assembler.advance(now))
        if each.topic in topics.names():
            assembler.add(each.topic, now, ros.decode(each.type_name, each.data))
            assembler.prepare_ahead(now)
        ready += ((now, frame) for frame in assembler.complete(now))
    ready += ((now, frame) for frame in assembler.finish())
    yield from ((moment, frame.assemble()) for moment, frame in ready)


@pytest.mark.parametrize("topics", [KEYFRAMES, SWEEPS, BLIND], ids=["keyframes", "sweeps", "no cameras"])
@settings(max_examples=40, deadline=None)
@given(delays=st.fixed_dictionaries({topic: st.integers(0, 110_000) for topic in ORDERED}))
def test_frames_are_those_of_a_replay_in_whatever_order_topics_arrive(
    log: list[Sent], topics: Topics, delays: dict[str, int]
) -> None:
    expected, _ = assemble(log, topics, keyframed=topics.keyframes is not None)
    counts = Counts(SENSORS)
    found = list(live(arriving(log, delays), topics, counts))
    assert [frame.token for _, frame in found] == [frame.token for frame in expected]
    for (time, frame), wanted in zip(found, expected, strict=True):
        assert_equal_frames(frame, wanted)
        np.testing.assert_array_equal(prepare(frame, SEEING)["images"], prepare(wanted, SEEING)["images"])
        assert time - frame.timestamp <= 250_000 + TICK + max(delays.values())
    assert "late" not in counts.summary()


def test_a_frame_is_complete_as_soon_as_its_last_message_is_there(log: list[Sent]) -> None:
    delays = {"/cam_back_left": 100_000}  # pictures of the others are at most 6 ms after the LiDAR
    found = list(live(arriving(log, delays), KEYFRAMES, Counts(SENSORS), period=1000))
    ends = {frame.timestamp: time - frame.timestamp for time, frame in found}
    pictures = [each.time for each in log if each.topic == "/cam_back_left/image_rect_compressed"]
    assert list(ends.values()) == [time + 100_000 - stamp for time, stamp in zip(pictures, ends, strict=True)]


def through_a_lens(log: Sequence[Sent], barrel: float) -> list[Sent]:
    """The messages of cameras whose calibration has a lens that distorts."""
    distorted = {"distortion_model": "plumb_bob", "d": np.array([barrel, 0, 0, 0, 0])}
    return [edit(each, **distorted) if each.topic.endswith("camera_info") else each for each in log]


@pytest.mark.parametrize("topics", [KEYFRAMES, RAW], ids=["rectified", "raw"])
def test_pictures_are_rectified_and_warped_while_frames_wait(
    log: list[Sent], topics: Topics, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = through_a_lens(log, 0.1)
    expected, _ = assemble(log, topics)
    pictures = [prepare(frame, SEEING)["images"] for frame in expected]
    found = [frame for _, frame in live(arriving(log, {"/odometry": 50_000}), topics, Counts(SENSORS))]
    changed = [
        replace(frame, cameras={name: replace(each, image=each.image // 2) for name, each in frame.cameras.items()})
        for frame in found
    ]
    darker = [prepare(frame, SEEING)["images"] for frame in changed]
    monkeypatch.setattr(sensor, "fit_picture", None)  # cannot be called
    for frame, wanted, images, dark in zip(found, expected, pictures, darker, strict=True):
        assert_equal_frames(frame, wanted)
        np.testing.assert_array_equal(prepare(frame, SEEING)["images"], images)
        assert dark.mean() == pytest.approx(images.mean() / 2, abs=1)


def test_a_picture_is_rectified_anew_by_another_lens(log: list[Sent]) -> None:
    camera, pose = CameraPictures(RAW.cameras["CAM_FRONT"], 100_000, 1_000_000), np.eye(4)
    first = {each.topic: each for each in reversed(log)}
    [picture] = ros.decode(first[camera.topics.image].type_name, first[camera.topics.image].data)
    assert isinstance(picture, Picture)
    camera.add(0, picture)
    assert not camera.prepare_nearest(picture.stamp, None)  # the lens is not known yet
    for barrel, anew in ((0.1, True), (0.1, False), (0.3, True)):
        [info] = through_a_lens([first[camera.topics.info]], barrel)
        [intrinsics] = ros.decode(info.type_name, info.data)
        assert isinstance(intrinsics, Intrinsics)
        assert intrinsics.lens is not None
        camera.set_intrinsics(intrinsics)
        assert camera.prepare_nearest(picture.stamp, None) == anew
        near = camera.near(picture.stamp, lambda _: pose)
        found = camera.first_usable(near, lambda _: pose, Counts(SENSORS))
        assert found is not None
        np.testing.assert_array_equal(found.image, intrinsics.lens.rectify(picture.decode()))


def test_a_silent_camera_delays_no_frame_after_two_seconds(log: list[Sent]) -> None:
    # Without the first sweep, those that are frames have pictures beside them.
    log = [each for each in log if each.topic != "/lidar_top" or each.time > log[0].time]
    start, end = log[0].time, log[-1].time
    long = [each for again in range(4) for each in repeated(log, again * (end - start + 250_000))]
    heard = [each for each in long if not each.topic.startswith("/cam_front/") or each.time <= start + 1_000_000]
    found = list(live(arriving(heard, {}), SWEEPS, Counts(SENSORS), period=1000))
    last = max(each.time for each in heard if each.topic.startswith("/cam_front/"))
    waits = {frame.timestamp - last: time - frame.timestamp for time, frame in found[:-1]}
    assert {wait >= 250_000 for since, wait in waits.items() if 0 < since < SILENT - 250_000} == {True}
    assert {wait < 50_000 for since, wait in waits.items() if since > SILENT} == {True}


def repeated(log: Sequence[Sent], later: int) -> Iterator[Sent]:
    """The messages of a drive, so many us later; without its keyframes and static transforms."""
    for each in log:
        if each.topic == "/tf_static" and not later:
            yield each
        elif each.topic == "/tf":
            yield stamped(each, each.time + later)._replace(time=each.time + later)
        elif each.topic not in ("/tf_static", "/keyframe"):
            yield edit(each, stamp=each.time + later, time=each.time + later)


def stamped(poses: Sent, stamp: int) -> Sent:
    """A message of /tf whose poses have this stamp (us)."""
    content = ros.TYPES.deserialize_cdr(poses.data, poses.type_name)
    for moved in content.transforms:
        moved.header.stamp.sec, moved.header.stamp.nanosec = stamp // 1_000_000, stamp % 1_000_000 * 1000
    return poses._replace(data=bytes(ros.TYPES.serialize_cdr(content, poses.type_name)))


def test_a_pose_of_a_wrong_time_leaves_no_later_frame_without_one(log: list[Sent]) -> None:
    """It is damaged, or from before a clock was set back; those after it come later than sweeps and pictures."""
    first = next(each for each in log if each.topic == "/tf")
    damaged = [stamped(first, first.time + 100_000_000), *log]
    expected, _ = assemble(damaged)
    found = list(live(arriving(damaged, {"/tf": 80_000}), KEYFRAMES, Counts(SENSORS)))
    for (_, frame), wanted in zip(found, expected, strict=True):
        assert_equal_frames(frame, wanted)


def test_the_shortest_interval_says_whether_a_nearer_message_may_come() -> None:
    """After intervals of 100 and 40 ms the next message may come in 40 ms."""
    arrivals = Arrivals()
    for stamp in (0, 100_000, 140_000):
        arrivals.add("a", stamp, stamp)
    assert [arrivals.is_settled("a", stamp, 140_000) for stamp in (150_000, 165_000)] == [True, False]


LIDAR, FRONT, PERIOD = "/lidar_top", "/cam_front/image_rect_compressed", 100_000
SET, COUNT = 40, 70  # the number of the period in which clocks are set, and of all


def at(stamp: int, place: float) -> Transform:
    return Transform(stamp, "map", "base", np.array([place, 0, 0]), np.array([1.0, 0, 0, 0]))


@pytest.mark.parametrize("back", [1.1, 30.0, 60.0, 600.0])
def test_after_a_clock_was_set_back_poses_are_those_after_it(back: float) -> None:
    """At 100 Hz and stamps that there were before, as of a simulation that begins anew; now and when it is set again.

    The vehicle is elsewhere than it was at that stamp.
    """
    transforms, tick, time = Transforms(), 10_000, 10**10
    clock = time
    for epoch in range(3):
        for i in range(round(1.5 * MOST_POSES)):
            time, clock = time + tick, clock + tick
            transforms.add(at(clock, 1e-6 * time), time)
            if i >= 25:
                pose = transforms.pose("map", "base", clock - 245_000)
                assert pose is not None
                assert pose[0, 3] == pytest.approx(1e-6 * time - 0.245), (epoch, i)
            assert len(transforms._edges["base"]["map"]._stamps) <= MOST_POSES
        clock -= round(1e6 * back)


def test_poses_out_of_order_or_of_one_wrong_time_cost_no_other_its_place() -> None:
    transforms, tick = Transforms(), 10_000
    stamps = [tick * i for i in range(400)]
    for i in range(0, 400, 4):  # within 40 ms, and each a second time 0.9 s later
        for j in (3, 1, 0, 2):
            assert transforms.add(at(stamps[i + j], i + j), stamps[i + 3])
            assert i < 90 or not transforms.add(at(stamps[i + j - 90], i + j - 90), stamps[i + 3])
        if i % 100 == 0:  # damaged
            wrong = stamps[i] + (-1) ** (i // 100) * 3_000_000 + 1
            transforms.add(at(wrong, -1), stamps[i + 3])
    for i, stamp in enumerate(stamps):
        assert transforms.pose("map", "base", stamp)[0, 3] == i


def periods(log: list[Sent], back: int) -> list[Sent]:
    """A drive along x, 1 m in a period, whose clock is set back by so many us. What is sent says its own number."""
    first = {each.topic: each for each in reversed(log)}
    start, sweep, intrinsics = log[0].time, first[LIDAR], first["/cam_front/camera_info"]
    info = TYPES.deserialize_cdr(intrinsics.data, intrinsics.type_name)
    found = [each for each in log if each.topic == "/tf_static"]
    for i in range(COUNT):
        time = start + PERIOD * i
        clock = back if i >= SET else 0
        stamp = time - clock
        for share in (0.0, 0.5):
            pose = np.array([i + share, 0, 0, 1, 0, 0, 0])
            moved = transform_message(stamp + round(share * PERIOD), "map", "base_link", pose)
            found.append(message("/tf", time, make("tf2_msgs/msg/TFMessage", transforms=[moved])))
        points = TYPES.deserialize_cdr(sweep.data, sweep.type_name).data.view(np.float32).reshape(-1, 5).copy()
        points[:, 3] = i
        grey = cv2.imencode(".png", np.full((info.height, info.width, 3), i, np.uint8))[1].ravel()
        picture = make("sensor_msgs/msg/CompressedImage", header=header(stamp, "cam_front"), format="png", data=grey)
        found += [
            edit(intrinsics, stamp=stamp, time=time),
            message(FRONT, stamp, picture)._replace(time=time),
            fix(stamp, i, 0)._replace(time=time),
            edit(sweep, stamp=stamp, time=time, data=points.view(np.uint8).ravel()),
        ]
        numbered = make("std_msgs/msg/Float64", data=float(i))
        measured = make("sensor_msgs/msg/Temperature", header=header(stamp, ""), temperature=float(i), variance=0.0)
        found += [message("/bare", time, numbered), message("/stamped", stamp, measured)._replace(time=time)]
        if i % 5 == 1:
            said = {"stamp": stamp, "token": f"{i}", "sweeps": [stamp - PERIOD, stamp - 2 * PERIOD]}
            found.append(edit(first["/keyframe"], data=json.dumps(keyframe(first["/keyframe"]) | said), time=time))
    return found


def keyframe(sent: Sent) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(TYPES.deserialize_cdr(sent.data, sent.type_name).data)
    return content


@pytest.mark.parametrize("keyframed", [True, False])
@pytest.mark.parametrize("back", [1_600_007, 3_000_007])
def test_a_frame_has_nothing_from_before_its_clock_was_set_back(
    log: list[Sent], back: int, keyframed: bool, tmp_path: Path
) -> None:
    """No pose, sweep, picture, fix or reading of such a stamp, also where frames wait for longer; those without a stamp
    are of the time at which they were recorded. Keyframes go on, too."""
    keyframes = "/keyframe" if keyframed else None
    topics = nuscenes_topics(keyframes=keyframes, position="/gps", wait=2.0)
    spec = InputSpec(BevGrid(reference="ego"), {"lidar": Lidar(sweeps=2)}, RIG)
    signals = {name: SignalConfig(topic=f"/{name}", timeout=5.0) for name in ("bare", "stamped")}
    recording = write_raw_mcap(tmp_path / "drive.mcap", periods(log, back))
    frames = list(RecordedDrive(recording, topics, spec, None, signals).frames())
    after = [frame for frame in frames if frame.global_from_ego[0, 3] >= SET]
    assert len(after) >= (COUNT - SET) // 5 - 1
    start = log[0].time
    for frame in after:
        number = (frame.timestamp + back - start) // PERIOD
        assert frame.global_from_ego[0, 3] == pytest.approx(number)
        assert frame.points is not None
        assert frame.points[:, 3].min() > SET
        assert frame.cameras["CAM_FRONT"].image.max() == number
        assert frame.position == (number, 0)
        assert len(frame.signals) == 2
        for readings in frame.signals.values():
            assert [each.value for each in readings][SET - number :] == [*range(SET + 1, number + 1)]
