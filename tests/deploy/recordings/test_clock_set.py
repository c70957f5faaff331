"""Clocks that are set while a vehicle drives: nothing from before lies among what comes after."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from recordings import TYPES, Sent, edit, fix, message, nuscenes_topics, write_raw_mcap
from vocabulary import RIG

from deploy.log import header, make
from deploy.log import transform as transform_message
from deploy.recordings.drives import RecordedDrive
from deploy.recordings.messages import Transform
from deploy.recordings.transforms import MOST_POSES, Transforms
from perception.config import Lidar
from perception.grid import BevGrid
from perception.scene.signals import SignalConfig
from perception.sensors.inputs import InputSpec

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
    spec = InputSpec(BevGrid(reference="ego"), Lidar(sweeps=2), None, RIG)
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
