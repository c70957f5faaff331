"""Frames from the messages of a recording, by their stamps."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from deploy.replay.sources.cameras import UNMOUNTED, CameraPictures
from deploy.replay.sources.counts import Counts
from deploy.replay.sources.lidar import LidarSweeps
from deploy.replay.sources.messages import Cloud, Content, Intrinsics, Keyframe, Picture, Transform
from deploy.replay.sources.pace import Pace
from deploy.replay.sources.topics import Topics
from deploy.replay.sources.transforms import Transforms
from perception.frame import LIDAR, Conditions, Frame
from perception.grid import Reference
from perception.sensors.lidar.sweeps import global_from_reference

_MOST_WAITING = 8  # frames to come
_REMEMBERED = 64  # stamps of a topic, to know a repetition


class DriveInfo(NamedTuple):
    """What is known of a drive as a whole."""

    scene: str
    location: str = ""
    conditions: Conditions = Conditions()


class _Moment(NamedTuple):
    """A frame to come."""

    stamp: int
    time: int  # us, when it was recorded that there is one
    token: str
    keyframe: Keyframe | None


@dataclass
class _Seen:
    """Of the stamps of one topic."""

    last: int = -1
    recent: deque[int] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))


class Assembler:
    """Takes messages in the order they were recorded in, and gives frames.

    A frame is made for each keyframe that the recording names, or else by Pace. It waits `wait` seconds of recording
    time for what belongs to it: the sweep of its very stamp, the sweeps before, and of every camera the picture that is
    closest in time, within `tolerance`. Each is placed with the vehicle's pose at its own stamp. Messages that are
    late, missing, repeated or out of order are counted. What is kept is bounded by constants.

    Args:
        sweeps: how many LiDAR sweeps before a frame's own to add.
        keyframed: whether the recording names its keyframes.
    """

    def __init__(
        self, topics: Topics, sweeps: int, reference: Reference, counts: Counts, drive: DriveInfo, keyframed: bool
    ) -> None:
        self._topics, self._reference, self._counts, self._drive = topics, reference, counts, drive
        self._wait, self._tolerance = round(topics.wait * 1e6), round(topics.tolerance * 1e6)
        self._pace = None if keyframed else Pace(round(topics.period * 1e6), topics.lidar is not None)
        self._transforms = Transforms()
        self._lidar = None if topics.lidar is None else LidarSweeps(topics.lidar, sweeps)
        keep = 2 * (self._wait + self._tolerance)
        self._cameras = {name: CameraPictures(each, self._tolerance, keep) for name, each in topics.cameras.items()}
        self._pictured = {each.image: name for name, each in topics.cameras.items()}
        self._informed = {each.info: name for name, each in topics.cameras.items()}
        self._seen: dict[str, _Seen] = {}
        self._waiting: list[_Moment] = []
        self._done: deque[tuple[int, frozenset[str]]] = deque(maxlen=_MOST_WAITING)  # stamps, and what was there
        self._tokens: deque[str] = deque(maxlen=_REMEMBERED)

    def advance(self, time: int) -> Iterator[Frame]:
        """The frames that have waited long enough when the next message is of this time (us)."""
        while self._waiting and (time - self._waiting[0].time >= self._wait or len(self._waiting) > _MOST_WAITING):
            yield from self._made(self._waiting.pop(0))

    def finish(self) -> Iterator[Frame]:
        """The frames that still wait when the recording has ended."""
        while self._waiting:
            yield from self._made(self._waiting.pop(0))

    def add(self, topic: str, time: int, contents: list[Content]) -> None:
        """Take in a message that was recorded at a time (us)."""
        for content in contents:
            t, lidar = self._topics, self._lidar
            if isinstance(content, Transform) and topic in (t.transforms, t.static_transforms, t.odometry):
                self._add_transform(topic, content)
            elif isinstance(content, Intrinsics) and topic in self._informed:
                self._cameras[self._informed[topic]].inform(content)
            elif isinstance(content, Keyframe) and topic == t.keyframes:
                self._add_keyframe(topic, time, content)
            elif isinstance(content, Cloud) and lidar is not None and topic == lidar.topic:
                self._add_cloud(lidar, time, content)
            elif isinstance(content, Picture) and topic in self._pictured:
                self._add_picture(topic, time, content)
            else:
                self._counts.corrupt(topic, "another type of message than the map of topics says")

    def _fresh(self, topic: str, stamp: int) -> bool:
        """Whether a stamp is no repetition; counts those, and steps back in time."""
        seen = self._seen.setdefault(topic, _Seen())
        if stamp in seen.recent:
            self._counts.wrong("duplicated", topic)
            return False
        if stamp < seen.last:
            self._counts.wrong("out_of_order", topic)
        seen.last = stamp
        seen.recent.append(stamp)
        return True

    def _add_transform(self, topic: str, transform: Transform) -> None:
        overruled = self._topics.odometry not in (None, topic) and transform.child == self._topics.ego_frame
        if not overruled and not self._transforms.add(transform, topic == self._topics.static_transforms):
            self._counts.wrong("duplicated", topic)

    def _add_keyframe(self, topic: str, time: int, keyframe: Keyframe) -> None:
        if not self._fresh(topic, keyframe.stamp):
            return
        if keyframe.token in self._tokens:
            self._counts.wrong("duplicated", topic)
        elif self._done and keyframe.stamp <= self._done[-1][0]:
            self._counts.wrong("late", topic)
        else:
            self._tokens.append(keyframe.token)
            self._waiting.append(_Moment(keyframe.stamp, time, keyframe.token, keyframe))
            self._waiting.sort(key=lambda moment: moment.stamp)

    def _add_cloud(self, lidar: LidarSweeps, time: int, cloud: Cloud) -> None:
        if not self._fresh(lidar.topic, cloud.stamp):
            return
        if any(stamp == cloud.stamp and LIDAR not in there for stamp, there in self._done):
            self._counts.wrong("late", lidar.topic)
        lidar.add(cloud)
        if self._pace is not None and self._pace.sweep(cloud.stamp):
            self._await(cloud.stamp, time, self._pace.jumps)

    def _add_picture(self, topic: str, time: int, picture: Picture) -> None:
        if not self._fresh(topic, picture.stamp):
            return
        name = self._pictured[topic]
        if any(abs(stamp - picture.stamp) <= self._tolerance and name not in there for stamp, there in self._done):
            self._counts.wrong("late", topic)
        self._cameras[name].add(time, picture)
        if self._pace is not None and self._pace.picture(picture.stamp):
            self._await(picture.stamp, time, self._pace.jumps)

    def _await(self, stamp: int, time: int, jumps: int) -> None:
        token = f"{self._drive.scene}@{stamp}" + (f"#{jumps}" if jumps else "")
        self._waiting.append(_Moment(stamp, time, token, None))

    def _made(self, moment: _Moment) -> Iterator[Frame]:
        """The frame of a moment; none where the vehicle's pose is not known."""
        lidar = self._lidar
        ego_from_lidar = None
        if lidar is not None:
            lidar.place(self._pose)
            mountings = (self._mounting(name) for name in lidar.frames)
            ego_from_lidar = next((each for each in mountings if each is not None), None)
            if ego_from_lidar is None and lidar.has(moment.stamp):
                self._counts.corrupt(lidar.topic, UNMOUNTED)
        pose = self._pose(moment.stamp)
        if pose is None or (self._reference == "lidar" and ego_from_lidar is None):
            self._counts.unposed_frames += 1
            return
        reference = global_from_reference(pose, ego_from_lidar, self._reference)
        points = None
        if lidar is not None and ego_from_lidar is not None:
            inverse = np.linalg.inv(reference)
            points = lidar.points(moment.stamp, moment.keyframe, ego_from_lidar, inverse, self._counts)
        cameras = {
            name: camera.closest(moment.stamp, self._pose, self._mounting, self._counts)
            for name, camera in self._cameras.items()
        }
        known = moment.keyframe or self._drive
        frame = Frame(
            token=moment.token,
            timestamp=moment.stamp,
            reference=self._reference,
            global_from_reference=reference,
            global_from_ego=pose,
            points=points,
            cameras={name: camera for name, camera in cameras.items() if camera is not None},
            conditions=known.conditions,
            scene=known.scene,
            location=known.location,
        )
        self._done.append((moment.stamp, frozenset(frame.cameras) | (set() if points is None else {LIDAR})))
        self._counts.frame(frame)
        yield frame

    def _pose(self, stamp: int) -> np.ndarray | None:
        return self._transforms.pose(self._topics.global_frame, self._topics.ego_frame, stamp)

    def _mounting(self, frame: str) -> np.ndarray | None:
        return self._transforms.mounting(self._topics.ego_frame, frame)
