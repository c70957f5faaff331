"""The latest messages of a recording, from which a frame is assembled: signals, sweeps, pictures."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from deploy.recordings.counts import Counts
from deploy.recordings.messages import Cloud, CorruptMessage, Fix, Intrinsics, Lens, Picture, stamp_of
from deploy.recordings.payloads import point_times
from deploy.recordings.stamps import ClockSet
from deploy.recordings.topics import CameraTopics, LidarTopic
from deploy.recordings.transforms import Placement
from perception.datasets.files import jpeg_file
from perception.datasets.nuscenes.descriptions import position_on_map
from perception.datasets.sweeps import OLDEST, Sweep, SweepMotion
from perception.frame import Camera, JpegFile, Reading, Warped
from perception.rig import RigCamera
from perception.scene.signals import SignalConfig
from perception.sensors.camera.config import Image
from perception.sensors.camera.sensor import fit_picture

_MOST_FIXES = 256  # fixes
_LONGEST_HOLD = 2_000_000  # us for which a fix is used


class Positions:
    """The latest fixes by satellite, in order of arrival."""

    def __init__(self) -> None:
        self._fixes: deque[Fix] = deque(maxlen=_MOST_FIXES)

    def add(self, fix: Fix) -> None:
        self._fixes.append(fix)

    def forget(self, since: int) -> None:
        """Drop all fixes if the clock was set back, so that it showed this stamp (us) again."""
        if any(each.stamp >= since for each in self._fixes):
            self._fixes.clear()

    def at(self, stamp: int, location: str, global_from_ego: np.ndarray) -> tuple[float, float] | None:
        """Latitude and longitude (degrees, WGS 84) at a stamp (us) and a pose (4, 4) on the map of a location.

        They are of the fix that is closest in time or, without one within 2 s, of the pose, if the map's origin is
        known.
        """
        fix = min(self._fixes, key=lambda each: abs(each.stamp - stamp), default=None)
        if fix is not None and abs(fix.stamp - stamp) <= _LONGEST_HOLD:
            return fix.latitude, fix.longitude
        return position_on_map(location, global_from_ego)


_MOST_READINGS = 256  # readings of a signal
_MAX_TEXT = 200  # characters
_DEFAULT_FIELDS = ("data", "temperature")  # of std_msgs, and of sensor_msgs/Temperature


class _Received(NamedTuple):
    stamp: int | None  # us; None if the message has none
    time: int  # us, when it was recorded
    value: float | str


class Readings:
    """The latest readings of each signal, in order of arrival; signals without a topic are not in recordings."""

    def __init__(self, signals: Mapping[str, SignalConfig]) -> None:
        self._fields: dict[str, dict[str, str | None]] = {}  # by topic and signal
        for name, each in signals.items():
            if each.topic is not None:
                self._fields.setdefault(each.topic, {})[name] = each.field
        self._latest = {name: deque[_Received](maxlen=_MOST_READINGS) for name in signals}

    @property
    def topics(self) -> frozenset[str]:
        return frozenset(self._fields)

    def add(self, topic: str, time: int, message: Any) -> None:
        """Add the signals of a message that was recorded at this time (us).

        Raises:
            CorruptMessage: it does not have the field, or that is neither a number nor a text.
        """
        stamp = message_stamp(message) or None
        for name, path in self._fields[topic].items():
            self._latest[name].append(_Received(stamp, time, _value(message, path)))

    def at(self, stamp: int, shift: int = 0) -> dict[str, Sequence[Reading]]:
        """The readings until a time (us) of the signals that have any, in order of time.

        The shift is added to the time of recording (us) of messages without a stamp.
        """
        found = dict[str, Sequence[Reading]]()
        for name, kept in self._latest.items():
            readings = [Reading(each.time + shift if each.stamp is None else each.stamp, each.value) for each in kept]
            until = [each for each in readings if each.timestamp <= stamp]
            if until:
                found[name] = sorted(until, key=lambda each: each.timestamp)
        return found

    def forget(self, new: ClockSet) -> None:
        """Drop readings from before a clock was set whose stamps come again."""
        for kept in self._latest.values():
            for each in [*kept]:
                if each.stamp is not None and each.stamp >= new.stamp and each.time < new.time:
                    kept.remove(each)


def message_stamp(message: Any) -> int:
    """The stamp (us) in the header of a message; 0 without one."""
    stamp = getattr(getattr(message, "header", None), "stamp", None)
    seconds, nanoseconds = (getattr(stamp, name, 0) for name in ("sec", "nanosec"))
    if not isinstance(seconds, int) or not isinstance(nanoseconds, int):
        raise CorruptMessage("an invalid stamp")
    return stamp_of(seconds, nanoseconds)


def _value(message: Any, field: str | None) -> float | str:
    if field is None:
        field = next((each for each in _DEFAULT_FIELDS if hasattr(message, each)), _DEFAULT_FIELDS[0])
    value = message
    for part in field.split("."):
        try:
            value = value[int(part)] if part.isdigit() else getattr(value, part)
        except (AttributeError, IndexError, TypeError, KeyError):
            raise CorruptMessage("a message without the signal's field") from None
    if isinstance(value, str) and len(value) <= _MAX_TEXT:
        return value
    if isinstance(value, bool | int | float | np.bool_ | np.number):
        with suppress(OverflowError):
            return float(value)
    raise CorruptMessage("a signal that is neither a number nor a short text")


_EXTRA_SWEEPS = 24  # kept beyond those of a frame, because more arrive while it waits


class LidarSweeps:
    """A bounded number of sweeps, in order of arrival, each with the vehicle's pose once that is known."""

    def __init__(self, topic: LidarTopic, sweeps: int, placement: Placement, counts: Counts) -> None:
        self.topic, self._given = topic.topic, topic
        self._placement, self._counts = placement, counts
        self.frame_ids = [] if topic.frame is None else [topic.frame]  # of the sensor, in order of preference
        self._sweeps = sweeps
        self._clouds: dict[int, np.ndarray] = {}  # points (N, 5) as in `Cloud`, by stamp
        self._times: dict[int, np.ndarray] = {}  # (N,) s of the points, by stamp, where they are known
        # By stamp, where no pose to come changes them: the motion of sweeps with times that were used, global from ego.
        self._motions: dict[int, SweepMotion] = {}
        self._poses: dict[int, np.ndarray] = {}  # (4, 4)

    def add(self, cloud: Cloud) -> None:
        if cloud.frame not in self.frame_ids:
            self.frame_ids = [*self.frame_ids[:1], cloud.frame]
        self._clouds[cloud.stamp] = cloud.points
        try:
            times = point_times(cloud, self._given)
        except CorruptMessage:
            self._counts.add_problem("uncompensated", self.topic)
        else:
            if times is not None:
                self._times[cloud.stamp] = times
        if len(self._clouds) > self._sweeps + _EXTRA_SWEEPS:
            self._drop(next(iter(self._clouds)))

    def forget(self, since: int) -> None:
        """Drop all sweeps if the clock was set back, so that it showed this stamp (us) again.

        Those with earlier stamps too: they are older than they would seem beside later ones.
        """
        if any(each >= since for each in self._clouds):
            for stamp in [*self._clouds]:
                self._drop(stamp)

    def has(self, stamp: int) -> bool:
        return stamp in self._clouds

    def end(self, stamp: int, tolerance: int) -> int:
        """The time (us) of the last point of the sweep closest to a stamp, within a tolerance, else the stamp."""
        near = [each for each in self._clouds if abs(each - stamp) <= tolerance]
        found = min(near, key=lambda each: abs(each - stamp), default=stamp)
        return found + (int(np.ceil(1e6 * self._times[found].max())) if found in self._times else 0)

    def look_up_poses(self) -> None:
        """Look up poses that later transforms no longer change, before old transforms are dropped."""
        until = self._placement.posed_until()
        for stamp in self._clouds.keys() - self._poses.keys():
            if stamp <= until and (pose := self._placement.pose(stamp)) is not None:
                self._poses[stamp] = pose

    def _pose(self, stamp: int) -> np.ndarray | None:
        return self._poses[stamp] if stamp in self._poses else self._placement.pose(stamp)

    def closest(self, stamp: int, tolerance: int) -> int | None:
        """The stamp of the sweep closest to this stamp, within a tolerance (us); None if there is none with a pose."""
        near = sorted((abs(each - stamp), each) for each in self._clouds if abs(each - stamp) <= tolerance)
        return next((each for _, each in near if self._pose(each) is not None), None)

    def sweeps(self, stamp: int, earlier: Sequence[int] | None, ego_from_lidar: np.ndarray) -> list[Sweep]:
        """The sweep with this stamp, then earlier ones; none without a sweep of exactly this stamp.

        A sweep without a pose is counted and dropped. If its points have times, but the vehicle's poses then are not
        known, it is counted, and all points are taken to be of the sweep's stamp. If `earlier` is None, the sweeps of
        the last second follow, latest first.
        """
        if stamp not in self._clouds or self._pose(stamp) is None:
            return []
        if earlier is None:
            earlier = sorted((s for s in self._clouds if stamp - round(1e6 * OLDEST) <= s < stamp), reverse=True)
        sweeps = []
        for each in [stamp, *earlier[: self._sweeps]]:
            if each in self._clouds and (pose := self._pose(each)) is not None:
                sweeps.append(Sweep(self._clouds[each], each, pose, ego_from_lidar, self._motion(each)))
            elif each in self._clouds:
                self._counts.add_problem("unposed", self.topic)
                self._drop(each)
        return sweeps

    def _motion(self, stamp: int) -> SweepMotion | None:
        """The vehicle's motion during a sweep; None if its points have no times, or the poses are not known."""
        if stamp not in self._times or stamp in self._motions:
            return self._motions.get(stamp)
        motion = self._placement.motion(stamp, self._times[stamp])
        if motion is None:
            self._counts.add_problem("uncompensated", self.topic)
            del self._times[stamp]
        elif self.end(stamp, 0) <= self._placement.posed_until():
            self._motions[stamp] = motion
        return motion

    def _drop(self, stamp: int) -> None:
        del self._clouds[stamp]
        for known in (self._poses, self._times, self._motions):
            known.pop(stamp, None)


UNMOUNTED = "no transform from the sensor to the vehicle"
_MOST = 32  # pictures


def intrinsics_of(camera: RigCamera) -> Intrinsics:
    """The calibration of a rig's camera; rectified pictures keep its focal length and size."""
    matrix, coefficients, lens = camera.intrinsics, camera.lens.distortion if camera.lens else (), None
    if coefficients:
        model = "rational_polynomial" if len(coefficients) == 8 else "plumb_bob"
        lens = Lens(model, np.array(coefficients), matrix, np.eye(3), matrix, camera.size)
    return Intrinsics(0, camera.name, camera.size, matrix, lens)


class _Pixels(NamedTuple):
    image: np.ndarray  # (H, W, 3) uint8 RGB
    file: JpegFile | None  # with this very image
    ahead: Warped | None = None


@dataclass(eq=False)
class _Kept:
    time: int  # us, when it was recorded
    picture: Picture
    tried: bool = False  # whether it was prepared in advance, or found to be damaged
    pixels: _Pixels | None = None  # of a picture that was prepared


PlacedPicture = tuple[_Kept, np.ndarray | None]  # with global_from_ego (4, 4) when it was exposed, if that is known


class CameraPictures:
    """A bounded number of pictures, and the camera's latest calibration.

    Stamps of a picture and of its frame differ by `tolerance` us at most; a picture is kept for `keep` us of recording
    time.
    """

    def __init__(self, topics: CameraTopics, tolerance: int, keep: int) -> None:
        self.topics, self._tolerance, self._keep = topics, tolerance, keep
        self.intrinsics: Intrinsics | None = None
        self._pictures: deque[_Kept] = deque(maxlen=_MOST)

    def set_intrinsics(self, intrinsics: Intrinsics) -> None:
        """Set the calibration. CameraInfo repeats it with each picture; an equal lens is kept with its remap tables."""
        before = self.intrinsics
        if before is not None and before.lens is not None and before.lens.equals(intrinsics.lens):
            intrinsics = replace(intrinsics, lens=before.lens)
        if before is None or before.lens is not intrinsics.lens or before.size != intrinsics.size:
            for kept in self._pictures:
                kept.tried, kept.pixels = False, None
        self.intrinsics = intrinsics

    def add(self, time: int, picture: Picture) -> None:
        """Add a picture that was recorded at this time (us)."""
        while self._pictures and time - self._pictures[0].time > self._keep:
            self._pictures.popleft()
        self._pictures.append(_Kept(time, picture))

    def forget(self, since: int) -> None:
        """Drop all pictures if the clock was set back, so that it showed this stamp (us) again."""
        if any(each.picture.stamp >= since for each in self._pictures):
            self._pictures.clear()

    def near(self, stamp: int, pose_at: Callable[[int], np.ndarray | None]) -> list[PlacedPicture]:
        """The pictures within the tolerance of a stamp (us), the closest first, with the vehicle's poses then."""
        return [(kept, pose_at(kept.picture.stamp)) for kept in self._by_distance(stamp)]

    def first_usable(
        self, near: Sequence[PlacedPicture], mounting_of: Callable[[str], np.ndarray | None], counts: Counts
    ) -> Camera | None:
        """The first picture that can be used, with its pose and calibration; None if there is none.

        Those before it, which are damaged or have no pose, are counted and dropped.
        """
        dropped = []
        camera = None
        for kept, pose in near:
            if pose is None:
                counts.add_problem("unposed", self.topics.image)
                dropped.append(kept)
                continue
            try:
                camera = self._camera(kept, pose, mounting_of)
                break
            except CorruptMessage as error:
                counts.add_corrupt(self.topics.image, str(error))
                dropped.append(kept)
        for unusable in dropped:
            with suppress(ValueError):  # it is as old as that
                self._pictures.remove(unusable)
        return camera

    def _by_distance(self, stamp: int) -> list[_Kept]:
        """The pictures within the tolerance of a stamp (us), the closest first; of two, the earlier."""
        near = [each for each in self._pictures if abs(each.picture.stamp - stamp) <= self._tolerance]
        return sorted(near, key=lambda each: (abs(each.picture.stamp - stamp), each.picture.stamp))

    def nearest(self, stamp: int) -> int | None:
        """The stamp of the picture closest to a stamp (us), within the tolerance; it may turn out to be damaged."""
        near = self._by_distance(stamp)
        return near[0].picture.stamp if near else None

    def is_calibrated(self, stamp: int, mounting_of: Callable[[str], np.ndarray | None]) -> bool:
        """Whether calibration and mounting are known for the picture closest to a stamp (us)."""
        nearest = self._by_distance(stamp)[:1]
        mounted = (mounting_of(self.topics.frame or each.picture.frame) is not None for each in nearest)
        return self.intrinsics is not None and all(mounted)

    def prepare_nearest(self, stamp: int, size: Image | None) -> bool:
        """Decode and rectify the picture closest to a stamp (us) before a frame needs it, and warp it to this size.

        Returns whether there was one that was not prepared yet.
        """
        kept = next(iter(self._by_distance(stamp)), None)
        if kept is None or kept.tried or self.intrinsics is None:
            return False
        kept.tried = True
        with suppress(CorruptMessage):  # which is counted when a frame needs the picture
            pixels = self._pixels(kept.picture, self.intrinsics)
            ahead = None if size is None else Warped(fit_picture(pixels.image, size), pixels.image)
            kept.pixels = pixels._replace(ahead=ahead)
        return True

    def _camera(self, kept: _Kept, pose: np.ndarray, mounting_of: Callable[[str], np.ndarray | None]) -> Camera:
        mounting = mounting_of(self.topics.frame or kept.picture.frame)
        if self.intrinsics is None:
            raise CorruptMessage("a picture of a camera without CameraInfo")
        if mounting is None:
            raise CorruptMessage(UNMOUNTED)
        image, file, ahead = kept.pixels or self._pixels(kept.picture, self.intrinsics)
        lens = self._lens(self.intrinsics)
        if lens is not None:
            mounting = mounting.copy()
            mounting[:3, :3] = mounting[:3, :3] @ lens.rotation.T
        return Camera(image, self.intrinsics.matrix, mounting, pose, kept.picture.stamp, file, ahead)

    def _lens(self, intrinsics: Intrinsics) -> Lens | None:
        return intrinsics.lens if self.topics.unrectified else None

    def _pixels(self, picture: Picture, intrinsics: Intrinsics) -> _Pixels:
        if picture.size != intrinsics.size:
            raise CorruptMessage("a picture of another size than its CameraInfo")
        lens = self._lens(intrinsics)
        if lens is not None and not lens.known:
            raise CorruptMessage("a picture with an unknown lens model")
        image = picture.decode()
        if (image.shape[1], image.shape[0]) != picture.size:
            raise CorruptMessage("a picture of another size than its header says")
        if lens is not None:
            return _Pixels(lens.rectify(image), None)
        return _Pixels(image, jpeg_file(picture.content, image))
