"""Sensor faults, injected into a drive while it is replayed.

A fault is written KIND:SENSOR[,NAME=NUMBER]...[@START-END], such as drop:cameras@2.0-4.0.

A fault of the network instead of a sensor is hidden:CLASS[@START-END], as hidden:car@2.0-4.0: the objects of the class
are no longer in its results. All else goes on as if the bundle had lost the class: tracks end, and the occupancy, which
still sees it, disagrees.
"""

from __future__ import annotations

import hashlib
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field, ValidationError

from deploy.recordings.choice import DriveTime
from perception.errors import InputError
from perception.evaluation import corrupt
from perception.frame import Boxes, Camera, Frame, Prediction
from perception.io.section import Section, explain
from perception.rig import GROUPS, Sensors
from perception.scene.health.monitor import Status
from perception.taxonomy import Taxonomy

LONGEST_DELAY = 10.0  # s for which frames are kept in memory

Fraction = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Amount = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Kind(Section):
    """What a fault does to a sensor's data. Subclasses override some methods; calibration and timestamps stay."""

    expected_statuses: ClassVar[frozenset[Status]]  # with any of them, health has detected the fault
    shows_earlier: ClassVar[bool] = False  # what an earlier frame had

    def camera(self, camera: Camera, past: Camera | None, rng: np.random.Generator) -> Camera | None:
        """Return the camera with the fault; a frozen or late one still shows the `past` of an earlier frame.

        The fault, the sensor and the frame seed the random numbers.
        """
        return replace(camera, image=self.image(camera.image, rng))

    def image(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return image

    def lidar(self, frame: Frame, past: Frame | None, rng: np.random.Generator) -> Frame:
        """Return the frame with the fault; the frame must have points, all of one LiDAR."""
        return frame


class Drop(Kind):
    """Nothing arrives."""

    expected_statuses = frozenset({"missing"})

    def camera(self, camera: Camera, past: Camera | None, rng: np.random.Generator) -> None:
        return None

    def lidar(self, frame: Frame, past: Frame | None, rng: np.random.Generator) -> Frame:
        return frame.without_points()


class Freeze(Kind):
    """The last data before the fault are repeated as if they were new."""

    expected_statuses = frozenset({"frozen"})
    shows_earlier = True

    def camera(self, camera: Camera, past: Camera | None, rng: np.random.Generator) -> Camera | None:
        return past and replace(camera, image=past.image)

    def lidar(self, frame: Frame, past: Frame | None, rng: np.random.Generator) -> Frame:
        without = frame.without_points()
        return without if past is None else replace(without, points=past.points, sweep_of_point=past.sweep_of_point)


class Delay(Kind):
    """Data arrive late, with their own time and pose; until the first ones the sensor is missing."""

    expected_statuses = frozenset({"late", "missing"})
    shows_earlier = True
    seconds: Annotated[float, Field(gt=0, le=LONGEST_DELAY)] = 0.5

    def camera(self, camera: Camera, past: Camera | None, rng: np.random.Generator) -> Camera | None:
        return past

    def lidar(self, frame: Frame, past: Frame | None, rng: np.random.Generator) -> Frame:
        if past is None or past.points is None:
            return frame.without_points()
        late = past.points + np.array([0, 0, 0, 0, 1e-6 * (frame.timestamp - past.timestamp)], np.float32)
        shown = replace(frame.without_points(), points=late, sweep_of_point=past.sweep_of_point)
        return corrupt.move_points(shown, np.linalg.inv(frame.global_from_reference) @ past.global_from_reference)


class Blackout(Kind):
    """The sensor works but sees nothing: black pictures, sweeps without returns."""

    expected_statuses = frozenset({"dark", "missing"})

    def image(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return np.zeros_like(image)

    def lidar(self, frame: Frame, past: Frame | None, rng: np.random.Generator) -> Frame:
        return frame.select_points(slice(0))


class Blur(Kind):
    expected_statuses = frozenset({"blurred"})
    pixels: Amount = 5.0  # standard deviation, in the recorded picture

    def image(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return corrupt.blur(image, self.pixels)


class Noise(Kind):
    expected_statuses = frozenset({"noisy"})
    levels: Amount = 25.0  # standard deviation for pictures, of 255 grey levels
    metres: Amount = 0.1  # standard deviation for points

    def image(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return corrupt.noisy_image(image, self.levels, rng)

    def lidar(self, frame: Frame, past: Frame | None, rng: np.random.Generator) -> Frame:
        return corrupt.noisy_points(frame, self.metres, rng)


class Miscalibration(Kind):
    """The mounting is rotated and shifted against the calibration; the LiDAR's about the frame of reference.

    Within a second, health detects a LiDAR if the ground below it tilts or rises more than by suspension and road. It
    does not detect a camera, nor a LiDAR that is turned about the vertical.
    """

    expected_statuses = frozenset({"miscalibrated"})
    degrees: NotNegative = 1.0
    metres: NotNegative = 0.05

    def camera(self, camera: Camera, past: Camera | None, rng: np.random.Generator) -> Camera:
        return replace(camera, ego_from_camera=camera.ego_from_camera @ self._displacement(rng))

    def lidar(self, frame: Frame, past: Frame | None, rng: np.random.Generator) -> Frame:
        return corrupt.move_points(frame, self._displacement(rng))

    def _displacement(self, rng: np.random.Generator) -> np.ndarray:
        return corrupt.displacement(self.degrees, self.metres, rng)


class Points(Kind):
    """Returns are lost, as in spray or on dark paint."""

    expected_statuses = frozenset({"thinned"})
    share: Fraction = 0.5

    def lidar(self, frame: Frame, past: Frame | None, rng: np.random.Generator) -> Frame:
        return corrupt.thin_points(frame, self.share, rng)


class Corruption(Kind):
    """Packets arrive with wrong bytes."""

    expected_statuses = frozenset({"corrupt"})
    share: Fraction = 0.2  # of the LiDAR's packets, or of the pictures' rows of blocks

    def image(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return corrupt.damage_image(image, self.share, rng)

    def lidar(self, frame: Frame, past: Frame | None, rng: np.random.Generator) -> Frame:
        return corrupt.garble_points(frame, self.share, rng)


KINDS: dict[str, type[Kind]] = {kind.__name__.lower(): kind for kind in Kind.__subclasses__()}

SENSORS_OF_KIND = {"blur": "cameras", "points": "lidar"}  # kinds that only this group of sensors can have


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

    @property
    def is_permanent(self) -> bool:
        return (self.start, self.end) == (0.0, np.inf)

    @staticmethod
    def parse(text: str, every: Sensors) -> Fault:
        """Parse KIND:SENSOR[,NAME=NUMBER]...[@START-END] for the sensors of a rig."""
        match = _TEXT.fullmatch(text)
        if match is None:
            raise InputError(f"--fault {text}: write KIND:SENSOR[,NAME=NUMBER]@START-END, as drop:cameras@2.0-4.0")
        name, sensor = match["kind"], match["sensor"]
        if name not in KINDS:
            raise InputError(f"--fault {text}: no kind {name!r}; one of {', '.join(KINDS)}")
        scanned = every if name == "drop" else replace(every, scanners={})  # which can only be missing
        groups = dict(zip(GROUPS, (every.lidars, every.cameras, scanned.names), strict=True))
        groups |= {kind: tuple(every.of([kind]).scanners) for kind in every.scanners.values()}
        if sensor not in (*groups, *every.names):
            raise InputError(f"--fault {text}: no sensor {sensor!r}; one of {', '.join((*groups, *every.names))}")
        sensors = groups.get(sensor, (sensor,))
        if outside := {*sensors} - {*groups[SENSORS_OF_KIND.get(name, "all")]}:
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
        scans = {name: scan for name, scan in frame.scans.items() if name not in self.sensors}
        # Keep the order of the cameras.
        return replace(frame, cameras={name: cameras[name] for name in frame.cameras if name in cameras}, scans=scans)


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
    """Start and end (s) of a fault with these texts after @; all of the drive without any."""
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
        raise InputError(f"--fault {text}: {explain(kind, error)}; options: {known}") from None


def inject(frames: Iterable[Frame], faults: Sequence[Fault], time: DriveTime | None = None) -> Iterator[Frame]:
    """Yield the frames of one or more drives with all faults, applied in the given order.

    The same drive and faults give the same frames, bit for bit. The drives' time is given where their first frames are
    not among these.
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
        known = _frame_to_show(fault.kind, past, frame, inside)
        yield fault.apply(frame, known) if inside else frame


def _frame_to_show(kind: Kind, past: deque[Frame], frame: Frame, inside: bool) -> Frame | None:
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


HIDDEN = "hidden:"  # begins the text
_HIDDEN_TEXT = re.compile(r"hidden:(?P<class>[^@]*)(?:@(?P<start>[^-]*)-(?P<end>.*))?")


@dataclass(frozen=True)
class HiddenClass:
    text: str  # as written
    name: str  # of the class
    label: int
    start: float  # s since the first frame of the drive
    end: float  # s; the fault ends before it

    @staticmethod
    def parse(text: str, taxonomy: Taxonomy) -> HiddenClass:
        """Parse hidden:CLASS[@START-END]."""
        match = _HIDDEN_TEXT.fullmatch(text)
        if match is None:
            raise InputError(f"--fault {text}: write hidden:CLASS@START-END, as hidden:car@2.0-4.0")
        name, known = match["class"], taxonomy.class_names
        if name not in known:
            raise InputError(f"--fault {text}: no class {name!r}; one of {', '.join(known)}")
        start, end = window(text, match["start"], match["end"])
        return HiddenClass(text, name, taxonomy.label(name), start, end)


def parse_faults(texts: Sequence[str], sensors: Sensors, taxonomy: Taxonomy) -> tuple[list[Fault], list[HiddenClass]]:
    """Faults of sensors and of classes, each in the order of their texts; InputError for one that does not parse."""
    faults = [Fault.parse(text, sensors) for text in texts if not text.startswith(HIDDEN)]
    return faults, [HiddenClass.parse(text, taxonomy) for text in texts if text.startswith(HIDDEN)]


def hide(prediction: Prediction, faults: Sequence[HiddenClass], seconds: float) -> Prediction:
    """The prediction without the boxes of the classes that are hidden so many seconds after the start of the drive."""
    results = dict(prediction.results)
    for fault in faults:
        if fault.start <= seconds < fault.end:
            for name, result in results.items():
                if isinstance(result, Boxes):
                    results[name] = result.select(result.labels != fault.label)
    return replace(prediction, results=results)
