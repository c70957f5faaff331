"""Sensor faults, injected into a drive while it is replayed.

A fault is written KIND:SENSOR[,NAME=NUMBER]...[@START-END], such as drop:cameras@2.0-4.0.
"""

from __future__ import annotations

import hashlib
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from pydantic import ValidationError

from deploy.replay.fault_kinds import KINDS, SENSORS_OF_KIND, Delay, Freeze, Kind, Miscalibration
from deploy.replay.selection import DriveTime
from perception.errors import InputError
from perception.frame import Frame
from perception.rig import GROUPS, Sensors

_TEXT = re.compile(r"(?P<kind>\w*):(?P<sensor>\w*)(?P<options>(?:,[^,@]*)*)(?:@(?P<start>[^-]*)-(?P<end>.*))?")


@dataclass(frozen=True)
class Fault:
    """One fault of some sensors in a time window."""

    text: str  # as written; seeds the random numbers, with the sensor and the frame
    kind: Kind
    sensors: tuple[str, ...]  # names in the rig
    lidars: tuple[str, ...]  # all of the rig
    start: float  # s since the first frame of the drive
    end: float  # s; the fault ends before it

    @staticmethod
    def parse(text: str, every: Sensors) -> Fault:
        """Parse KIND:SENSOR[,NAME=NUMBER]...[@START-END].

        Args:
            every: the sensors of the rig.

        Raises:
            InputError: there is no such kind, sensor or option, a number is out of range, or the window is empty.
        """
        match = _TEXT.fullmatch(text)
        if match is None:
            raise InputError(f"--fault {text}: write KIND:SENSOR[,NAME=NUMBER]@START-END, as drop:cameras@2.0-4.0")
        name, sensor = match["kind"], match["sensor"]
        if name not in KINDS:
            raise InputError(f"--fault {text}: no kind {name!r}; one of {', '.join(KINDS)}")
        if sensor not in (*GROUPS, *every.names):
            raise InputError(f"--fault {text}: no sensor {sensor!r}; one of {', '.join((*GROUPS, *every.names))}")
        groups = dict(zip(GROUPS, (every.lidars, every.cameras, every.names), strict=True))
        sensors = groups.get(sensor, (sensor,))
        if outside := set(sensors) - set(groups[SENSORS_OF_KIND.get(name, "all")]):
            raise InputError(f"--fault {text}: {sensor} cannot have {name} ({', '.join(sorted(outside))})")
        start, end = window(text, match["start"], match["end"])
        return Fault(text, _kind(text, KINDS[name], match["options"]), sensors, every.lidars, start, end)

    def random(self, *seeds: str) -> np.random.Generator:
        """A generator with the same numbers for the same fault and seeds on every machine."""
        digest = hashlib.sha256("\0".join((self.text, *seeds)).encode()).digest()
        return np.random.default_rng(np.frombuffer(digest, np.uint32))

    def apply(self, frame: Frame, past: Frame | None) -> Frame:
        """Apply the fault to a frame in its window; `past` is the frame that a frozen or late sensor still shows."""
        # A displacement is the same in all frames; other faults are random in each frame.
        seed = () if isinstance(self.kind, Miscalibration) else (frame.token,)
        cameras = dict(frame.cameras)
        for name in set(self.sensors) & cameras.keys():
            before = None if past is None else past.cameras.get(name)
            camera = self.kind.camera(cameras.pop(name), before, self.random(name, *seed))
            if camera is not None:
                cameras[name] = camera
        for i, name in enumerate(self.lidars):
            own = frame.of_lidar(i)
            if name in self.sensors and own.points is not None:
                shown = None if past is None else past.of_lidar(i)
                own = self.kind.lidar(own, shown, self.random("lidar" if i == 0 else name, *seed))
                frame = _with_points_of(own, frame, i)
        # Keep the order of the cameras.
        return replace(frame, cameras={name: cameras[name] for name in frame.cameras if name in cameras})


def _with_points_of(own: Frame, frame: Frame, lidar: int) -> Frame:
    """The frame with the points of `own`, whose classes nobody knows, instead of one LiDAR's."""
    own = replace(own, class_of_point=None)
    if frame.lidar_of_point is None:
        return own
    joined = replace(frame, class_of_point=None).select_points(frame.lidar_of_point != lidar)
    if own.points is not None:
        joined = joined.with_further_points(replace(own, lidar_of_point=np.full(len(own.points), lidar, np.uint8)))
    return joined if joined.points is not None and len(joined.points) else joined.without_points()


def window(text: str, start: str | None, end: str | None) -> tuple[float, float]:
    """Start and end (s) of a fault with these texts after @; all of the drive without any.

    Raises:
        InputError: they are not two times in order.
    """
    if start is None or end is None:
        return 0.0, np.inf
    try:
        times = float(start), float(end)
    except ValueError:
        times = (0.0, 0.0)
    if not 0 <= times[0] < times[1]:
        raise InputError(f"--fault {text}: the window is @START-END in seconds of the drive, such as @2.0-4.0")
    return times


def _kind(text: str, kind: type[Kind], options: str) -> Kind:
    known = ", ".join(kind.model_fields) or "none"
    values: dict[str, float] = {}
    for option in options.split(",")[1:]:
        name, _, number = option.partition("=")
        try:
            values[name] = float(number)
        except ValueError:
            raise InputError(f"--fault {text}: {option!r}: write NAME=NUMBER; options: {known}") from None
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        what = "is no option" if first["type"] == "extra_forbidden" else first["msg"].lower()
        raise InputError(f"--fault {text}: {first['loc'][0]}: {what}; options: {known}") from None


def inject(frames: Iterable[Frame], faults: Sequence[Fault], time: DriveTime | None = None) -> Iterator[Frame]:
    """Yield the frames of one or more drives with all faults, applied in the given order.

    The same drive and faults give the same frames, bit for bit.

    Args:
        time: of the drives, where their first frames are not among these.
    """
    for fault in faults:
        frames = _inject_one(frames, fault, time or DriveTime())
    return iter(frames)


def _inject_one(frames: Iterable[Frame], fault: Fault, time: DriveTime) -> Iterator[Frame]:
    scene, past = None, deque[Frame]()
    for frame in frames:
        if frame.scene != scene:
            scene, past = frame.scene, deque()
        inside = fault.start <= time(frame.scene, frame.timestamp) < fault.end
        known = _shown_frame(fault.kind, past, frame, inside)
        yield fault.apply(frame, known) if inside else frame


def _shown_frame(kind: Kind, past: deque[Frame], frame: Frame, inside: bool) -> Frame | None:
    """The earlier frame that the sensor still shows; removes frames from `past` that are no longer needed."""
    if isinstance(kind, Freeze):
        if not inside or not past:
            past.append(frame)
        while len(past) > 1:
            past.popleft()
        return past[0]
    if isinstance(kind, Delay):
        past.append(frame)
        shown = frame.timestamp - 1e6 * kind.seconds
        while len(past) > 1 and past[1].timestamp <= shown:
            past.popleft()
        return past[0] if past[0].timestamp <= shown else None
    return None
