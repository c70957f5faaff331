"""Assemble frames from the messages of a recording, by their stamps."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from deploy.replay.sources.cameras import UNMOUNTED, CameraPictures
from deploy.replay.sources.counts import Counts
from deploy.replay.sources.frame_trigger import FrameTrigger
from deploy.replay.sources.lidar import LidarSweeps
from deploy.replay.sources.messages import Cloud, Content, Fix, Intrinsics, Keyframe, Picture, Transform
from deploy.replay.sources.positions import Positions
from deploy.replay.sources.topics import Topics
from deploy.replay.sources.transforms import Transforms
from perception.frame import LIDAR, Conditions, Frame
from perception.grid import Reference
from perception.sensors.lidar.sweeps import global_from_reference

_MAX_PENDING = 8  # frames
_STAMPS_KEPT = 64  # of each topic, to recognise repeated messages


class DriveInfo(NamedTuple):
    """Name, place and tagged conditions of a drive."""

    scene: str
    location: str = ""
    conditions: Conditions = Conditions()


class _PendingFrame(NamedTuple):
    """A frame whose messages are still arriving."""

    stamp: int  # us
    time: int  # us, recording time of the message that announced it
    token: str
    keyframe: Keyframe | None


@dataclass
class _TopicStamps:
    """The latest stamps (us) of one topic."""

    last: int = -1
    recent: deque[int] = field(default_factory=lambda: deque(maxlen=_STAMPS_KEPT))


class Assembler:
    """Takes messages in the order in which they were recorded, and yields frames.

    A frame is made for each keyframe message or, without those, when FrameTrigger says so. It waits `wait` seconds of
    recording time for its messages: the sweep with the frame's stamp, the sweeps before it, and of every camera the
    picture that is closest in time, within `tolerance`. Each is placed by the vehicle's pose at its own stamp. Messages
    that are late, missing, repeated or out of order are counted. Memory is bounded by constants.

    Args:
        sweeps: number of earlier LiDAR sweeps to add to a frame's own.
        has_keyframes: whether the recording has keyframe messages.
    """

    def __init__(
        self, topics: Topics, sweeps: int, reference: Reference, counts: Counts, drive: DriveInfo, has_keyframes: bool
    ) -> None:
        self._topics, self._reference, self._counts, self._drive = topics, reference, counts, drive
        self._wait, self._tolerance = round(topics.wait * 1e6), round(topics.tolerance * 1e6)
        self._trigger = None if has_keyframes else FrameTrigger(round(topics.period * 1e6), topics.lidar is not None)
        self._transforms, self._positions = Transforms(), Positions()
        self._lidar = None if topics.lidar is None else LidarSweeps(topics.lidar, sweeps)
        keep = 2 * (self._wait + self._tolerance)
        self._cameras = {name: CameraPictures(each, self._tolerance, keep) for name, each in topics.cameras.items()}
        self._camera_of_image = {each.image: name for name, each in topics.cameras.items()}
        self._camera_of_info = {each.info: name for name, each in topics.cameras.items()}
        self._stamps: dict[str, _TopicStamps] = {}
        self._pending: list[_PendingFrame] = []
        # Stamps and sensors of the latest frames, to recognise late messages.
        self._recent: deque[tuple[int, frozenset[str]]] = deque(maxlen=_MAX_PENDING)
        self._tokens: deque[str] = deque(maxlen=_STAMPS_KEPT)

    def advance(self, time: int) -> Iterator[Frame]:
        """Yield the frames that have waited long enough, given the recording time (us) of the next message."""
        while self._pending and (time - self._pending[0].time >= self._wait or len(self._pending) > _MAX_PENDING):
            yield from self._assembled(self._pending.pop(0))

    def finish(self) -> Iterator[Frame]:
        """Yield the remaining frames at the end of the recording."""
        while self._pending:
            yield from self._assembled(self._pending.pop(0))

    def add(self, topic: str, time: int, contents: list[Content]) -> None:
        """Add the content of a message that was recorded at this time (us)."""
        for content in contents:
            t, lidar = self._topics, self._lidar
            if isinstance(content, Transform) and topic in (t.transforms, t.static_transforms, t.odometry):
                self._add_transform(topic, content)
            elif isinstance(content, Intrinsics) and topic in self._camera_of_info:
                self._cameras[self._camera_of_info[topic]].set_intrinsics(content)
            elif isinstance(content, Keyframe) and topic == t.keyframes:
                self._add_keyframe(topic, time, content)
            elif isinstance(content, Cloud) and lidar is not None and topic == lidar.topic:
                self._add_cloud(lidar, time, content)
            elif isinstance(content, Picture) and topic in self._camera_of_image:
                self._add_picture(topic, time, content)
            elif isinstance(content, Fix) and topic == t.position:
                self._add_fix(topic, time, content)
            else:
                self._counts.add_corrupt(topic, "another message type than the map of topics says")

    def _is_new(self, topic: str, stamp: int) -> bool:
        """Whether the topic has not had this stamp before; counts repetitions and steps back in time."""
        stamps = self._stamps.setdefault(topic, _TopicStamps())
        if stamp in stamps.recent:
            self._counts.add_problem("duplicated", topic)
            return False
        if stamp < stamps.last:
            self._counts.add_problem("out_of_order", topic)
        stamps.last = stamp
        stamps.recent.append(stamp)
        return True

    def _add_transform(self, topic: str, transform: Transform) -> None:
        replaced = self._topics.odometry not in (None, topic) and transform.child == self._topics.ego_frame
        if not replaced and not self._transforms.add(transform, topic == self._topics.static_transforms):
            self._counts.add_problem("duplicated", topic)

    def _add_keyframe(self, topic: str, time: int, keyframe: Keyframe) -> None:
        if not self._is_new(topic, keyframe.stamp):
            return
        if keyframe.token in self._tokens:
            self._counts.add_problem("duplicated", topic)
        elif self._recent and keyframe.stamp <= self._recent[-1][0]:
            self._counts.add_problem("late", topic)
        else:
            self._tokens.append(keyframe.token)
            self._pending.append(_PendingFrame(keyframe.stamp, time, keyframe.token, keyframe))
            self._pending.sort(key=lambda pending: pending.stamp)

    def _add_cloud(self, lidar: LidarSweeps, time: int, cloud: Cloud) -> None:
        if not self._is_new(lidar.topic, cloud.stamp):
            return
        if any(stamp == cloud.stamp and LIDAR not in sensors for stamp, sensors in self._recent):
            self._counts.add_problem("late", lidar.topic)
        lidar.add(cloud)
        if self._trigger is not None and self._trigger.on_sweep(cloud.stamp):
            self._expect_frame(cloud.stamp, time, self._trigger)

    def _add_picture(self, topic: str, time: int, picture: Picture) -> None:
        if not self._is_new(topic, picture.stamp):
            return
        name = self._camera_of_image[topic]
        if any(
            abs(stamp - picture.stamp) <= self._tolerance and name not in sensors for stamp, sensors in self._recent
        ):
            self._counts.add_problem("late", topic)
        self._cameras[name].add(time, picture)
        if self._trigger is not None and self._trigger.on_picture(picture.stamp):
            self._expect_frame(picture.stamp, time, self._trigger)

    def _add_fix(self, topic: str, time: int, fix: Fix) -> None:
        fix = replace(fix, stamp=fix.stamp or time)
        if self._is_new(topic, fix.stamp):
            self._positions.add(fix)

    def _expect_frame(self, stamp: int, time: int, trigger: FrameTrigger) -> None:
        resets = f"#{trigger.clock_resets}" if trigger.clock_resets else ""
        token = f"{self._drive.scene}@{stamp}{resets}"
        self._pending.append(_PendingFrame(stamp, time, token, None))

    def _assembled(self, pending: _PendingFrame) -> Iterator[Frame]:
        """Yield the frame, or nothing if the vehicle's pose is not known."""
        lidar = self._lidar
        ego_from_lidar = None
        if lidar is not None:
            lidar.look_up_poses(self._pose)
            mountings = (self._mounting(name) for name in lidar.frame_ids)
            ego_from_lidar = next((each for each in mountings if each is not None), None)
            if ego_from_lidar is None and lidar.has(pending.stamp):
                self._counts.add_corrupt(lidar.topic, UNMOUNTED)
        pose = self._pose(pending.stamp)
        if pose is None or (self._reference == "lidar" and ego_from_lidar is None):
            self._counts.unposed_frames += 1
            return
        reference = global_from_reference(pose, ego_from_lidar, self._reference)
        points = None
        if lidar is not None and ego_from_lidar is not None:
            inverse = np.linalg.inv(reference)
            points = lidar.points(pending.stamp, pending.keyframe, ego_from_lidar, inverse, self._counts)
        cameras = {
            name: camera.closest(pending.stamp, self._pose, self._mounting, self._counts)
            for name, camera in self._cameras.items()
        }
        tags = pending.keyframe or self._drive
        frame = Frame(
            token=pending.token,
            timestamp=pending.stamp,
            reference=self._reference,
            global_from_reference=reference,
            global_from_ego=pose,
            points=points,
            cameras={name: camera for name, camera in cameras.items() if camera is not None},
            conditions=tags.conditions,
            scene=tags.scene,
            location=tags.location,
            position=self._positions.at(pending.stamp, tags.location, pose),
        )
        self._recent.append((pending.stamp, frozenset(frame.cameras) | (set() if points is None else {LIDAR})))
        self._counts.add_frame(frame)
        yield frame

    def _pose(self, stamp: int) -> np.ndarray | None:
        return self._transforms.pose(self._topics.global_frame, self._topics.ego_frame, stamp)

    def _mounting(self, frame: str) -> np.ndarray | None:
        return self._transforms.mounting(self._topics.ego_frame, frame)
