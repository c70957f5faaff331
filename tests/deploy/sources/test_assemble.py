"""Frames from messages: what is late, missing, repeated, out of order or between two poses."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recordings import TYPES, Sent, assembled, assert_equal_frames, edited, nuscenes_topics
from refusals import one_line_error
from scipy.spatial.transform import Rotation, Slerp
from vocabulary import CAMERAS, RIG

from deploy.replay.sources.messages import Transform
from deploy.replay.sources.topics import CameraTopics, LidarTopic, load_topics
from deploy.replay.sources.transforms import MOST_FRAMES, MOST_POSES, Transforms
from perception.frame import Frame

LIDAR = "/lidar_top"
FRONT = "/cam_front/image_rect_compressed"
UNSAID = {"token": "", "scene": "", "location": "", "position": None}


@pytest.fixture(scope="module")
def expected(log: list[Sent]) -> list[Frame]:
    return assembled(log)[0]


def numbers(log: list[Sent], topic: str) -> list[int]:
    return [i for i, each in enumerate(log) if each.topic == topic]


def test_repeated_messages_are_counted_and_change_nothing(log: list[Sent], expected: list[Frame]) -> None:
    frames, counts = assembled([each for each in log for _ in range(2)])
    for a, b in zip(frames, expected, strict=True):
        assert_equal_frames(a, b)
    duplicated = counts.summary()["duplicated"]
    assert duplicated[LIDAR] == 6
    assert duplicated[FRONT] == 3
    assert duplicated["/keyframe"] == 3
    assert duplicated["/tf"] == sum(each.topic == "/tf" for each in log)


def test_messages_out_of_order_are_counted_and_change_nothing(log: list[Sent], expected: list[Frame]) -> None:
    """Neighbours swapped all along: every message is at another place, within the time that frames wait."""
    spare = [*log]
    for i in range(1, len(spare) - 1, 2):
        spare[i], spare[i + 1] = spare[i + 1], spare[i]
    frames, counts = assembled(spare, nuscenes_topics(wait=0.4))
    for a, b in zip(frames, expected, strict=True):
        assert_equal_frames(a, b)
    assert "late" not in counts.summary()
    a, b = numbers(log, LIDAR)[:2]  # a sweep and its keyframe
    spare = [*log]
    spare[a], spare[b] = spare[b]._replace(time=log[a].time), spare[a]._replace(time=log[b].time)
    frames, counts = assembled(spare)
    assert_equal_frames(frames[0], expected[0])
    assert counts.summary()["out_of_order"] == {LIDAR: 1}


def test_a_message_that_is_late_is_counted_and_missing(log: list[Sent], expected: list[Frame]) -> None:
    """The keyframe's wait is over when a later message comes."""
    late = [*log]
    message = late.pop(numbers(log, FRONT)[0])
    late.insert(numbers(late, LIDAR)[2] + 1, message._replace(time=log[numbers(log, LIDAR)[2]].time + 1))
    frames, counts = assembled(late)
    assert "CAM_FRONT" not in frames[0].cameras
    assert_equal_frames(replace(expected[0], cameras=frames[0].cameras), frames[0])
    assert_equal_frames(frames[1], expected[1])
    summary = counts.summary()
    assert summary["late"] == {FRONT: 1}
    assert summary["missing"] == {"CAM_FRONT": 1}


@pytest.mark.parametrize("channel", ["LIDAR_TOP", *CAMERAS])
def test_a_sensor_that_is_silent_is_missing(log: list[Sent], expected: list[Frame], channel: str) -> None:
    frames, counts = assembled([each for each in log if not f"{each.topic}/".startswith(f"/{channel.lower()}/")])
    assert counts.summary()["missing"] == {channel: 3}
    for a, b in zip(frames, expected, strict=True):
        cameras = {name: camera for name, camera in b.cameras.items() if name != channel}
        assert_equal_frames(a, replace(b, cameras=cameras, points=None if channel == "LIDAR_TOP" else b.points))


def test_the_tolerance_decides_which_picture_belongs_to_a_frame(log: list[Sent]) -> None:
    """The closest in time, on either side, at most the tolerance away."""
    keyframe = log[numbers(log, "/keyframe")[1]].time
    first = log[numbers(log, FRONT)[1]]
    others = [each for each in log if each.topic != FRONT]

    def chosen(offsets: list[int], tolerance: float = 0.06) -> int | None:
        pictures = [edited(first, stamp=keyframe + offset, time=keyframe) for offset in offsets]
        cut = next(i for i, each in enumerate(others) if each.time > keyframe)
        frames, _ = assembled([*others[:cut], *pictures, *others[cut:]], nuscenes_topics(tolerance=tolerance))
        camera = frames[1].cameras.get("CAM_FRONT")
        return None if camera is None else camera.timestamp - keyframe

    assert chosen([-60_000]) == -60_000
    assert chosen([-60_001]) is None
    assert chosen([60_001, 50_000]) == 50_000
    assert chosen([-20_000, 15_000, 30_000]) == 15_000
    assert chosen([15_000], tolerance=0.01) is None


def test_poses_between_are_interpolated(log: list[Sent], expected: list[Frame]) -> None:
    """Every second pose is dropped; the vehicle drives straight at a constant speed, so that nothing is lost."""
    poses = numbers(log, "/tf")
    dropped = set(poses[1:-1:2])
    frames, counts = assembled([each for i, each in enumerate(log) if i not in dropped], nuscenes_topics(wait=0.4))
    assert counts.unposed_frames == 0
    for a, b in zip(frames, expected, strict=True):
        np.testing.assert_allclose(a.global_from_ego, b.global_from_ego, atol=1e-9)
        assert a.cameras.keys() == b.cameras.keys()
        for name in a.cameras:
            np.testing.assert_allclose(a.cameras[name].global_from_ego, b.cameras[name].global_from_ego, atol=1e-9)


def transform(stamp: int, parent: str, child: str, translation: np.ndarray, rotation: Rotation) -> Transform:
    x, y, z, w = rotation.as_quat()
    return Transform(stamp, parent, child, np.asarray(translation, float), np.array([w, x, y, z]))


def test_interpolation_is_scipys() -> None:
    rng = np.random.default_rng(0)
    turns, places = Rotation.random(2, random_state=1), rng.normal(size=(2, 3))
    transforms = Transforms()
    for stamp, place, turn in zip((1_000_000, 1_800_000), places, turns, strict=True):
        assert transforms.add(transform(stamp, "odom", "base", place, turn), static=False)
    transforms.add(transform(0, "map", "odom", np.array([1.0, 2, 3]), Rotation.identity()), static=True)
    for share in (0.0, 0.1, 0.5, 0.99, 1.0):
        pose = transforms.pose("map", "base", 1_000_000 + round(800_000 * share))
        np.testing.assert_allclose(pose[:3, :3], Slerp([0, 1], turns)(share).as_matrix(), atol=1e-12)
        np.testing.assert_allclose(pose[:3, 3], places[0] + share * (places[1] - places[0]) + [1, 2, 3], atol=1e-12)


def test_a_pose_that_is_not_known_is_not_made_up() -> None:
    transforms = Transforms()
    for stamp in (1_000_000, 3_000_000):
        transforms.add(transform(stamp, "map", "base", np.ones(3), Rotation.identity()), static=False)
    known = [950_000, 1_000_000, 1_050_000, 2_950_000, 3_050_000]
    unknown = [949_999, 1_050_001, 2_000_000, 2_949_999, 3_050_001]
    assert all(transforms.pose("map", "base", stamp) is not None for stamp in known)
    assert all(transforms.pose("map", "base", stamp) is None for stamp in unknown)
    assert transforms.pose("map", "other", 1_000_000) is None


def test_a_ring_of_frames_has_no_root() -> None:
    transforms = Transforms()
    for parent, child in (("a", "b"), ("b", "c"), ("c", "a")):
        transforms.add(transform(0, parent, child, np.ones(3), Rotation.identity()), static=True)
    assert transforms.mounting("root", "a") is None
    transforms.add(transform(0, "root", "b", np.ones(3), Rotation.identity()), static=True)
    mounting = transforms.mounting("root", "a")
    np.testing.assert_array_equal(mounting[:3, 3], [3, 3, 3])


def test_transforms_are_bounded() -> None:
    transforms = Transforms()
    for i in range(3 * MOST_POSES):
        transforms.add(transform(i, "map", "base", np.ones(3), Rotation.identity()), static=False)
    for i in range(3 * MOST_FRAMES):
        transforms.add(transform(i, f"parent {i}", "base", np.ones(3), Rotation.identity()), static=False)
    edges = [edge for parents in transforms._edges.values() for edge in parents.values()]
    assert len(edges) == MOST_FRAMES
    assert max(len(edge._stamps) for edge in edges) <= MOST_POSES
    assert transforms.pose("map", "base", 3 * MOST_POSES - 1) is not None


def test_without_keyframes_sweeps_set_the_pace(log: list[Sent], expected: list[Frame]) -> None:
    """From the first sweep on, every 0.5 s; every 0.25 s takes every sweep. Tokens are drive and stamp."""
    stamps = [log[i].time for i in numbers(log, LIDAR)]
    frames, counts = assembled(log, nuscenes_topics(keyframes=None), keyframed=False)
    assert [frame.timestamp for frame in frames] == stamps[::2]
    assert counts.missing == dict.fromkeys(CAMERAS, 3)  # pictures are at the other sweeps
    frames, _ = assembled(log, nuscenes_topics(keyframes=None, period=0.25), keyframed=False)
    assert [frame.token for frame in frames] == [f"log@{stamp}" for stamp in stamps]
    for a, b in zip(frames[1::2], expected, strict=True):
        assert_equal_frames(replace(a, **UNSAID), replace(b, **UNSAID, conditions=a.conditions))


def test_without_keyframes_and_lidar_pictures_set_the_pace(log: list[Sent]) -> None:
    silent = [each for each in log if each.topic != LIDAR]
    pictures = [log[i].time for i in numbers(log, FRONT)]
    frames, counts = assembled(silent, nuscenes_topics(keyframes=None, lidars={}), keyframed=False)
    assert [frame.timestamp for frame in frames] == pictures
    assert counts.missing == {"LIDAR_TOP": 3}
    assert all(len(frame.cameras) == 6 for frame in frames)
    # A LiDAR that should be there may be late: pictures wait half a period for it.
    frames, _ = assembled(silent, nuscenes_topics(keyframes=None), keyframed=False)
    assert len(frames) == 1


def test_the_frame_of_the_lidar(log: list[Sent], expected: list[Frame]) -> None:
    """As the map of topics names it, else as the header does; without a transform of either it is missing."""
    for frame in ("lidar_top", "elsewhere", None):
        frames, _ = assembled(log, nuscenes_topics(lidars={"LIDAR_TOP": LidarTopic(topic=LIDAR, frame=frame)}))
        assert_equal_frames(frames[0], expected[0])
    other = [edited(each, header=header_of(each, "nowhere")) if each.topic == LIDAR else each for each in log]
    frames, _ = assembled(other, nuscenes_topics(lidars={"LIDAR_TOP": LidarTopic(topic=LIDAR, frame="lidar_top")}))
    assert_equal_frames(frames[0], expected[0])
    frames, counts = assembled(other, nuscenes_topics(lidars={"LIDAR_TOP": LidarTopic(topic=LIDAR)}))
    assert [frame.points for frame in frames] == [None] * 3
    assert counts.summary()["reasons"] == {LIDAR: {"no transform from the sensor to the vehicle": 3}}


def header_of(message: Sent, frame: str) -> Any:
    header = TYPES.deserialize_cdr(message.data, message.type_name).header
    return replace(header, frame_id=frame)


def test_time_that_goes_back_gives_tokens_of_its_own(log: list[Sent]) -> None:
    """A recording whose clock was set an hour back."""
    hour = 3_600_000_000
    again = [each for each in log if each.topic != "/tf"]
    shifted = [
        edited(each, stamp=each.time - hour, time=each.time + hour)
        for each in again
        if each.topic not in ("/keyframe", "/tf_static")
    ]
    topics = nuscenes_topics(keyframes=None, odometry="/odometry")
    frames, _ = assembled([*again, *shifted], topics, keyframed=False)
    tokens = [frame.token for frame in frames]
    assert len(tokens) == len(set(tokens)) == 6
    assert [("#1" in token) for token in tokens] == [False] * 3 + [True] * 3


def test_a_map_of_topics(tmp_path: Path) -> None:
    file = tmp_path / "topics.yaml"
    file.write_text(
        "global_frame: odom\nlidars: {LIDAR_TOP: {topic: /top/points}}\n"
        "cameras:\n  CAM_FRONT: {image: /front/image, info: /front/info, frame: front}\n"
    )
    front = CameraTopics(image="/front/image", info="/front/info", frame="front")
    assert load_topics(file, RIG) == nuscenes_topics(
        global_frame="odom", lidars={"LIDAR_TOP": LidarTopic(topic="/top/points")}, cameras={"CAM_FRONT": front}
    )
    file.write_text("")
    assert load_topics(file, RIG) == nuscenes_topics()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("speed: 3", "speed: is not a known key"),
        ("lidars: {LIDAR_TOP: {}}", "lidars.LIDAR_TOP.topic: field required"),
        ("tolerance: soon", "tolerance: input should be a valid number, got 'soon'"),
        ("tolerance: -1.0", "tolerance: input should be greater than 0, got -1.0"),
        (
            "cameras: {FRONT: {image: /a, info: /b}}",
            "cameras: FRONT is none of the rig nuscenes; it has CAM_FRONT",
        ),
        ("cameras: {CAM_FRONT: {image: /a, info: /a}}", "(top level): /a is named twice; a topic has one meaning"),
        ("{lidars: {}, cameras: {}}", "(top level): neither a LiDAR nor a camera; name at least one"),
        ("- a", "(top level): input should be a valid dictionary"),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_wrong_map_of_topics_is_told_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "topics.yaml"
    file.write_text(text)
    with one_line_error(at=f"{file}: ", says=message):
        load_topics(file, RIG)
