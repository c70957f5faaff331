"""Assemble frames from the messages of a recording, by their stamps."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from deploy.recordings.choice import FrameChoice
from deploy.recordings.counts import Counts, Publishers
from deploy.recordings.latest import (
    UNMOUNTED,
    CameraPictures,
    LidarSweeps,
    PlacedPicture,
    Positions,
    Readings,
    intrinsics_of,
)
from deploy.recordings.messages import Cloud, Content, Fix, Intrinsics, Keyframe, Picture, RawMessage, Transform
from deploy.recordings.scans import Received, Scans
from deploy.recordings.stamps import STAMPS_KEPT, Arrivals, ClockSet, Stamps
from deploy.recordings.topics import Topics
from deploy.recordings.transforms import STALE, Placement
from deploy.recordings.trigger import FrameTrigger
from perception.datasets.sweeps import Sweep, global_from_reference, join_lidars
from perception.frame import Conditions, Frame, Scan
from perception.sensors.inputs import InputSpec

_MAX_PENDING = 8  # frames


class DriveInfo(NamedTuple):
    scene: str
    location: str = ""
    conditions: Conditions = Conditions()


class _PendingFrame(NamedTuple):
    stamp: int  # us
    time: int  # us, recording time of the message that announced it
    token: str
    topic: str  # of that message
    keyframe: Keyframe | None
    clock: int  # how often the clock was set before
    nanoseconds: int = 0  # beyond the stamp
    stand_in: bool = False  # for a message of the leading sensor, which is overdue

    @property
    def place(self) -> tuple[int, int]:
        """In the order of the frames."""
        return self.clock, self.stamp


class ReadyFrame(NamedTuple):
    """A frame whose messages are chosen."""

    token: str
    assemble: Callable[[], Frame]  # decodes its pictures and joins its sweeps; to be called once at most


class Assembler:
    """Takes messages in the order in which they were recorded, and yields the frames that are ready.

    A frame is made for each keyframe message or, without those, when FrameTrigger says so. It waits `wait` seconds of
    recording time for its messages: the sweep with the frame's stamp, the sweeps before it, and of every camera and
    every other LiDAR the picture or sweep that is closest in time, within `tolerance`. Times are stamps with the
    offsets of their topics. Each is placed by the vehicle's pose at its own time, and each point of a sweep by that at
    the point's, if it has one. Messages that are late, missing, repeated or out of order are counted. Memory is
    bounded by constants.

    Args:
        topics: the first sensor in it that the network uses announces frames, LiDARs before cameras.
        spec: gives the rig, the frame of reference and the number of earlier LiDAR sweeps to add to a frame's own.
        has_keyframes: whether the recording has keyframe messages.
        choice: of the frames to yield; of the others no picture is decoded and no sweep is joined.
        readings: of the vehicle's signals, to which others add.

    Attributes:
        frames: ready so far, those that are not chosen included.
        announced: frames so far, those included that are not assembled.
        lost: tokens of the latest frames that were announced and then left out, each with the reason: `unposed` (the
            vehicle's pose was not known) or `replaced` (the message for which it stood in came after all).
    """

    def __init__(
        self,
        topics: Topics,
        spec: InputSpec,
        counts: Counts,
        drive: DriveInfo,
        has_keyframes: bool,
        choice: FrameChoice,
        readings: Readings,
    ) -> None:
        kinds = spec.rig.sensors.scanners
        used = {name: each for name, each in topics.scanners.items() if kinds[name] in spec.configs}
        topics = topics.model_copy(update={"scanners": used})
        self._topics, self._spec, self._counts, self._drive = topics, spec, counts, drive
        self._choice, self.frames, self.announced, self._named = choice, 0, 0, frozenset(topics.names())
        self.lost: deque[tuple[str, str]] = deque(maxlen=STAMPS_KEPT)
        self._wait, self._tolerance = round(topics.wait * 1e6), round(topics.tolerance * 1e6)
        self._announcing = topics.of(spec.named_sensors)
        leader = topics.keyframes if has_keyframes else next(iter(self._announcing), None)
        self._trigger = None if has_keyframes or leader is None else FrameTrigger(round(topics.period * 1e6), leader)
        self._placement, self._positions = Placement(topics, spec.rig), Positions()
        self._lidars = {
            name: LidarSweeps(each, spec.sweeps, self._placement, counts) for name, each in topics.lidars.items()
        }
        self._lidar_of_topic = {each.topic: name for name, each in topics.lidars.items()}
        self._reference = next(iter(topics.lidars), None)  # the LiDAR that gives the frames' times
        keep = 2 * (self._wait + self._tolerance)
        self._cameras = {name: CameraPictures(each, self._tolerance, keep) for name, each in topics.cameras.items()}
        self._scans = {name: Scans(each, kinds[name]) for name, each in topics.scanners.items()}
        self._scanner_of_topic = {each.topic: name for name, each in topics.scanners.items()}
        if topics.calibration == "rig":
            for each in spec.rig.cameras:
                if each.name in self._cameras:
                    self._cameras[each.name].set_intrinsics(intrinsics_of(each))
        self._camera_of_image = {each.image: name for name, each in topics.cameras.items()}
        self._camera_of_info = {each.info: name for name, each in topics.cameras.items()}
        offsets = {each.topic: each.offset for each in topics.lidars.values()}
        if topics.keyframes and offsets:
            offsets[topics.keyframes] = next(iter(offsets.values()))  # a keyframe has the stamp of its sweep
        offsets |= {each.image: each.offset for each in topics.cameras.values()}
        self._offsets = {topic: round(1e6 * offset) for topic, offset in offsets.items()}
        self._stamps, self._readings, self._arrivals = Stamps(counts), readings, Arrivals()
        self._publishers = Publishers(counts, shared=(topics.transforms, topics.static_transforms))
        self._pending: list[_PendingFrame] = []
        # The latest frames and their sensors, to recognise late messages.
        self._recent: deque[tuple[_PendingFrame, set[str]]] = deque(maxlen=_MAX_PENDING)
        self._tokens: deque[str] = deque(maxlen=STAMPS_KEPT)
        self._paced_by = leader
        self._clock = 0  # how often it was set
        self._shift = 0  # us, see `Stamps.shift`

    @property
    def waiting(self) -> list[str]:
        """Tokens of the frames that were announced and are not assembled yet."""
        return [each.token for each in self._pending]

    def advance(self, time: int) -> Iterator[ReadyFrame]:
        """Yield the frames that have waited long enough, given the recording time (us) of the next message."""
        while self._pending and (time - self._pending[0].time >= self._wait or len(self._pending) > _MAX_PENDING):
            yield from self._choose(self._pending.pop(0))

    def complete(self, time: int) -> Iterator[ReadyFrame]:
        """Yield the frames that no message to come can change, so that they need not wait, given the time now (us)."""
        while self._pending and self._is_settled(self._pending[0], time):
            yield from self._choose(self._pending.pop(0))

    def _is_settled(self, pending: _PendingFrame, time: int) -> bool:
        """Whether all sensors that send have sent what belongs to the frame, and calibration and poses for it came."""
        stamp, arrivals, last = pending.stamp, self._arrivals, [pending.stamp]
        for name, camera in self._cameras.items():
            if not arrivals.is_settled(camera.topics.image, stamp, time):
                return False
            nearest = camera.nearest(stamp)
            if nearest is not None:
                last.append(nearest)
                if not camera.is_calibrated(stamp, partial(self._placement.mounting, name)):
                    return False
        for name, lidar in self._lidars.items():
            exact = self._announces(name, pending)
            there = lidar.has(stamp) if exact else arrivals.is_settled(lidar.topic, stamp, time)
            if not there and not arrivals.is_silent(lidar.topic, time):
                return False
            last.append(lidar.end(stamp, self._tolerance))
            if lidar.frame_ids and self._mounting(name) is None:
                return False
        for scans in self._scans.values():
            if not arrivals.is_settled(scans.topic.topic, stamp, time):
                return False
            if (scan := scans.nearest(stamp, self._tolerance)) is not None:
                last.append(scan.stamp)
        return self._placement.posed_until() >= max(last) or arrivals.is_silent(self._topics.poses, time)

    def _mounting(self, lidar: str) -> np.ndarray | None:
        """(4, 4) ego_from_lidar; None if it is not known."""
        found = (self._placement.mounting(lidar, frame_id) for frame_id in self._lidars[lidar].frame_ids)
        return next((each for each in found if each is not None), None)

    def prepare_ahead(self, time: int) -> bool:
        """Prepare one picture that a waiting frame will use, if there is any; returns whether there was."""
        size = self._spec.picture
        return any(
            self._arrivals.is_settled(camera.topics.image, pending.stamp, time)
            and camera.prepare_nearest(pending.stamp, size)
            for pending in self._pending
            for camera in self._cameras.values()
        )

    def finish(self) -> Iterator[ReadyFrame]:
        """Yield the remaining frames at the end of the recording."""
        while self._pending:
            yield from self._choose(self._pending.pop(0))

    def add(self, topic: str, time: int, contents: list[Content]) -> None:
        """Add the content of a message that was recorded at this time (us)."""
        for each in contents:
            t, content = self._topics, _shift_time(each, self._offsets.get(topic, 0))
            self._arrivals.add(topic, content.stamp, time)
            if isinstance(content, Transform) and topic in (t.transforms, t.static_transforms, t.odometry):
                self._add_transform(topic, time, content)
            elif isinstance(content, Intrinsics) and topic in self._camera_of_info:
                if t.calibration == "recorded":
                    self._cameras[self._camera_of_info[topic]].set_intrinsics(content)
            elif isinstance(content, Keyframe) and topic == t.keyframes:
                self._add_keyframe(topic, time, content)
            elif isinstance(content, Cloud) and topic in self._lidar_of_topic:
                self._add_cloud(self._lidar_of_topic[topic], time, content)
            elif isinstance(content, Picture) and topic in self._camera_of_image:
                self._add_picture(topic, time, content)
            elif isinstance(content, Fix) and topic == t.position:
                self._add_fix(topic, time, content)
            else:
                self._counts.add_corrupt(topic, "another message type than the map of topics says")

    def take(self, raw: RawMessage) -> None:
        """Add a message to the sensors and signals that its topic is of; a damaged one is counted."""
        if raw.topic in self._readings.topics:
            with self._counts.corrupt(raw.topic):
                self._readings.add(raw.topic, raw.time, raw.parse(raw.data))
        if raw.topic in self._named:
            self._publishers.add(raw)
        if raw.topic in self._scanner_of_topic:
            with self._counts.corrupt(raw.topic):
                self._add_scan(raw.topic, raw.time, raw.parse(raw.data))
        elif raw.topic in self._named:
            with self._counts.corrupt(raw.topic):
                self.add(raw.topic, raw.time, raw.decode(raw.data))

    def _add_transform(self, topic: str, time: int, transform: Transform) -> None:
        with self._counts.corrupt(topic):
            if not self._placement.add(topic, transform, time):
                self._counts.add_problem("duplicated", topic)
            elif (new := self._placement.clock_set) is not None:
                self._leave_out(new)

    def _leave_out(self, new: ClockSet) -> None:
        """Leave out frames whose poses are gone, because since the clock was set others have their stamps."""
        gone = [each for each in self._pending if each.time < new.time and each.stamp >= new.stamp]
        self._pending = [each for each in self._pending if each not in gone]
        for each in gone:
            self._leave_out_unposed(each)

    def _leave_out_unposed(self, pending: _PendingFrame) -> None:
        self._counts.unposed_frames += 1
        self.lost.append((pending.token, "unposed"))

    def _is_new(
        self, topic: str, stamp: int, time: int, buffer: LidarSweeps | CameraPictures | Scans | Positions | None = None
    ) -> bool:
        """See `Stamps`; when a clock is set, what is timed by it follows, and its `buffer` forgets the time before."""
        if not self._stamps.is_new(topic, stamp, time):
            return False
        new = self._stamps.clock_set(topic)
        if topic == self._paced_by:
            self._shift = self._stamps.shift(topic)
            if new is not None:
                self._clock += 1
                self._readings.forget(new)
        if new is not None and buffer is not None:
            buffer.forget(new.stamp)
        return True

    def _count_if_late(self, topic: str, sensor: str, stamp: int, allowed: int) -> None:
        """Count what belongs to a frame that went out without this sensor."""
        if any(abs(frame.stamp - stamp) <= allowed and sensor not in sensors for frame, sensors in self._recent):
            self._counts.add_problem("late", topic)

    def _add_keyframe(self, topic: str, time: int, keyframe: Keyframe) -> None:
        if not self._is_new(topic, keyframe.stamp, time):
            return
        if keyframe.token in self._tokens:
            self._counts.add_problem("duplicated", topic)
        elif self._expect(_PendingFrame(keyframe.stamp, time, keyframe.token, topic, keyframe, self._clock)):
            self._tokens.append(keyframe.token)

    def _expect(self, frame: _PendingFrame) -> bool:
        """Let the frame wait for its messages; False if a later one was assembled already."""
        if self._recent and frame.place <= self._recent[-1][0].place:
            self._counts.add_problem("late", frame.topic)
            return False
        self.announced += 1
        self._pending.append(frame)
        self._pending.sort(key=lambda each: each.place)
        return True

    def _announce(self, topic: str, message: Cloud | Picture | Received, time: int) -> None:
        """Expect a frame if a sensor's message announces one."""
        trigger, stamp = self._trigger, message.stamp
        if trigger is None or topic not in self._announcing:
            return
        answer = trigger.answer(topic, stamp, time)
        if answer == "between":
            self._counts.between[topic] += 1
        elif answer != "no":
            if answer == "frame":
                self._give_way(stamp, trigger.spacing)
            resets = f"#{trigger.clock_resets}" if trigger.clock_resets else ""
            token = f"{self._drive.scene}@{stamp}{resets}"
            rest = trigger.clock_resets, message.nanoseconds, answer == "stand-in"
            self._expect(_PendingFrame(stamp, time, token, topic, None, *rest))

    def _give_way(self, stamp: int, spacing: int) -> None:
        """Drop the waiting frame that stood in for the message with this stamp (us), which has come after all."""
        stand_ins = [each for each in self._pending if each.stand_in and abs(each.stamp - stamp) <= spacing]
        if stand_ins:
            nearest = min(stand_ins, key=lambda each: abs(each.stamp - stamp))
            self._pending.remove(nearest)
            self.lost.append((nearest.token, "replaced"))

    def _announces(self, lidar: str, frame: _PendingFrame) -> bool:
        """Whether a sweep of this LiDAR announced the frame, so that the two have the same stamp."""
        return lidar == self._reference if frame.keyframe else frame.topic == self._lidars[lidar].topic

    def _add_cloud(self, name: str, time: int, cloud: Cloud) -> None:
        lidar, reference = self._lidars[name], name == self._reference
        if not self._is_new(lidar.topic, cloud.stamp, time, lidar):
            return
        self._count_if_late(lidar.topic, name, cloud.stamp, 0 if reference else self._tolerance)
        lidar.add(cloud)
        self._announce(lidar.topic, cloud, time)

    def _add_picture(self, topic: str, time: int, picture: Picture) -> None:
        name = self._camera_of_image[topic]
        camera = self._cameras[name]
        if not self._is_new(topic, picture.stamp, time, camera):
            return
        self._count_if_late(topic, name, picture.stamp, self._tolerance)
        camera.add(time, picture)
        self._announce(topic, picture, time)

    def _add_scan(self, topic: str, time: int, message: Any) -> None:
        name = self._scanner_of_topic[topic]
        scans = self._scans[name]
        scan = scans.read(message)
        self._arrivals.add(topic, scan.stamp, time)
        if not self._is_new(topic, scan.stamp, time, scans):
            return
        self._count_if_late(topic, name, scan.stamp, self._tolerance)
        scans.add(scan)
        self._announce(topic, scan, time)

    def _add_fix(self, topic: str, time: int, fix: Fix) -> None:
        fix = replace(fix, stamp=fix.stamp or time + self._shift)
        if self._is_new(topic, fix.stamp, time, self._positions):
            self._positions.add(fix)

    def _choose(self, pending: _PendingFrame) -> Iterator[ReadyFrame]:
        """Yield the frame with the messages that are here, or nothing if the vehicle's pose is not known."""
        placement, mountings = self._placement, dict[str, np.ndarray]()
        pictures = {name: each.near(pending.stamp, placement.pose) for name, each in self._cameras.items()}
        placement.extrapolated = 0  # pictures that only take the place of damaged ones do not count
        for near in pictures.values():
            placement.pose(next((kept.picture.stamp for kept, pose in near if pose is not None), pending.stamp))
        for name, lidar in self._lidars.items():
            lidar.look_up_poses()
            mounting = self._mounting(name)
            if mounting is not None:
                mountings[name] = mounting
            elif lidar.has(pending.stamp):
                self._counts.add_corrupt(lidar.topic, UNMOUNTED)
        pose, ego_from_lidar = placement.pose(pending.stamp), mountings.get(str(self._reference))
        grid = self._spec.grid.reference
        if pose is None or (grid == "lidar" and ego_from_lidar is None):
            self._leave_out_unposed(pending)
            return
        reference = global_from_reference(pose, ego_from_lidar, grid)
        sweeps = {self._index(name): self._sweeps(name, pending, mounting) for name, mounting in mountings.items()}
        there = {name for name in mountings if sweeps[self._index(name)]}
        scans = self._placed_scans(pending.stamp, np.linalg.inv(reference))
        there |= {name for name, each in pictures.items() if each} | scans.keys()
        tags = pending.keyframe or self._drive
        self.frames += 1
        self._recent.append((pending, there))
        if not self._choice(tags.scene, pending.stamp):
            return
        frame = Frame(
            token=pending.token,
            timestamp=pending.stamp,
            reference=grid,
            global_from_reference=reference,
            global_from_ego=pose,
            points=None,
            cameras={},
            conditions=tags.conditions,
            scene=tags.scene,
            location=tags.location,
            position=self._positions.at(pending.stamp, tags.location, pose),
            signals=self._readings.at(pending.stamp, self._shift),
            scans=scans,
            nanoseconds=pending.nanoseconds,
        )
        if placement.extrapolated:
            self._counts.add_problem("stale" if placement.extrapolated > STALE else "extrapolated", self._topics.poses)
        written = self._choice.written
        yield ReadyFrame(pending.token, partial(self._assemble, frame, sweeps, pictures, there, written))

    def _placed_scans(self, stamp: int, reference_from_global: np.ndarray) -> dict[str, Scan]:
        """The scans nearest to a stamp (us), in a frame of reference; those without pose or mounting are counted."""
        placed = {}
        for name, scans in self._scans.items():
            scan, topic = scans.nearest(stamp, self._tolerance), scans.topic
            if scan is None:
                continue
            pose = self._placement.pose(scan.stamp)
            mounting = self._placement.mounting(name, topic.frame or scan.frame)
            mounting = self._placement.mounting(name, scan.frame) if mounting is None else mounting
            if pose is None:
                self._counts.add_problem("unposed", topic.topic)
            elif mounting is None:
                self._counts.add_corrupt(topic.topic, UNMOUNTED)
            else:
                placed[name] = scans.placed(scan, reference_from_global @ pose @ mounting)
        return placed

    def _assemble(
        self,
        frame: Frame,
        sweeps: Mapping[int, Sequence[Sweep]],
        pictures: Mapping[str, Sequence[PlacedPicture]],
        there: set[str],
        written: bool,
    ) -> Frame:
        """Join the sweeps and decode the pictures of a frame; sensors whose messages are damaged leave `there`."""
        cloud = join_lidars(sweeps, frame.timestamp, np.linalg.inv(frame.global_from_reference), self._spec.rig.own)
        cameras = {
            name: self._cameras[name].first_usable(each, partial(self._placement.mounting, name), self._counts)
            for name, each in pictures.items()
        }
        usable = {name: camera for name, camera in cameras.items() if camera is not None}
        full = replace(frame, cameras=usable, **cloud._asdict())
        there &= usable.keys() | {name for name in self._lidars if full.has_lidar(self._index(name))}
        if written:
            self._counts.add_frame(full)
        return full

    def _index(self, lidar: str) -> int:
        return self._spec.rig.sensors.lidars.index(lidar)

    def _sweeps(self, name: str, pending: _PendingFrame, mounting: np.ndarray) -> list[Sweep]:
        lidar = self._lidars[name]
        if self._announces(name, pending):
            earlier = None if pending.keyframe is None else pending.keyframe.sweeps
            return lidar.sweeps(pending.stamp, earlier, mounting)
        closest = lidar.closest(pending.stamp, self._tolerance)
        return [] if closest is None else lidar.sweeps(closest, None, mounting)


def _shift_time(content: Content, offset: int) -> Content:
    """The content of a message at its own time, which is so many us after its stamp."""
    if offset and isinstance(content, Cloud | Picture | Keyframe):
        content = replace(content, stamp=content.stamp + offset)
        if isinstance(content, Keyframe):
            content = replace(content, sweeps=tuple(each + offset for each in content.sweeps))
    return content
