"""Which sensors of a drive can be trusted right now, by signs that are cheap to measure. numpy and OpenCV only.

`alignment` detects a camera that is turned against the LiDAR, and a LiDAR that is turned against most cameras; it says
which turns it cannot detect. The ground shows a tilted or lifted LiDAR. Without a healthy LiDAR among the sensors,
there are no new findings on turned cameras.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from perception.frame import LIDAR, Camera, Frame
from perception.scene.health.alignment import Alignment
from perception.scene.health.features import SLOPE, SweepSigns, picture_signs, sweep_signs
from perception.scene.health.limits import HealthLimits
from perception.scene.health.scan_gaps import unbroken

# The worst first.
Status = Literal[
    "ok", "missing", "dark", "saturated", "frozen", "late", "corrupt", "noisy", "blurred", "thinned", "miscalibrated"
]


@dataclass(frozen=True)
class SensorHealth:
    """The health of one sensor."""

    status: Status
    since: int  # us, time of the first frame of this status
    reason: str  # '' while ok
    also: tuple[SensorHealth, ...] = ()  # what else is wrong with it

    @property
    def findings(self) -> tuple[SensorHealth, ...]:
        """All faults of the sensor, the worst first."""
        return () if self.status == "ok" else (self, *self.also)

    @property
    def words(self) -> str:
        """All statuses in one word or several, such as 'late + blurred'."""
        return " + ".join(each.status for each in (self, *self.also))

    @property
    def reasons(self) -> str:
        return "; ".join(each.reason for each in (self, *self.also))


Readings = Iterator[tuple[Status, float, str]]  # how near its limit each sign is, where more than 1 is a fault; reason
_WORST_FIRST = get_args(Status)[1:]
_PASSING = _WORST_FIRST[5:]  # chance may hide these in a frame


@dataclass
class _Seen:
    """The latest data of a sensor."""

    content: bytes
    timestamp: int | None  # us, its own
    first: int  # us, time of the first frame that had it


@dataclass
class _Finding:
    since: int  # us, time of the first frame that showed it
    last: int  # us, and of the last one
    reason: str


class HealthMonitor:
    """Watches the sensors of one drive.

    Args:
        sensors: the network's: LIDAR_TOP and names of cameras.
        limits: of the kinds of sensors that the vehicle has; None: 8-bit cameras and an HDL-32E.
    """

    def __init__(self, sensors: Sequence[str], limits: HealthLimits | None = None) -> None:
        self.sensors = tuple(sensors)
        self.limits = limits or HealthLimits()
        # Of the last frame, how near its limit each sign of each sensor was, where it was looked at: more than 1 is a
        # fault, and NaN says that too little could be seen.
        self.loads: dict[str, dict[Status, float]] = {}
        self._health: dict[str, SensorHealth] = {}
        self._found: dict[str, dict[Status, _Finding]] = {name: {} for name in self.sensors}
        self._seen: dict[str, _Seen] = {}
        self._usual = np.zeros(2)  # points of a sweep, and their density on the ground nearby, lately
        self._counted: int | None = None  # us, when they were counted last
        self._whole = False  # whether a sweep so far had no gaps
        self._grounds: deque[tuple[int, float, float, float]] = deque(maxlen=64)  # time (us), slopes and height
        self._alignment = Alignment(self.limits)

    def update(self, frame: Frame) -> dict[str, SensorHealth]:
        """Health of every sensor at the time of a frame."""
        signs = None
        if LIDAR in self.sensors and frame.points is not None and len(frame.points):
            signs = sweep_signs(frame, self.limits.lidar)
        said: dict[str, dict[Status, str]] = {}
        for name in self.sensors:
            if name == LIDAR:
                readings = self._lidar(frame, signs)
            elif name in frame.cameras:
                readings = self._camera(name, frame.cameras[name], frame.timestamp)
            else:
                readings = iter([("missing", math.inf, "no picture")])
            said[name], self.loads[name] = _faults(readings)
        self._align(frame, signs, said)
        self._health = {name: self._joined(name, said[name], frame.timestamp) for name in self.sensors}
        return dict(self._health)

    def _align(self, frame: Frame, signs: SweepSigns | None, said: dict[str, dict[Status, str]]) -> None:
        """Add findings on sensors that are turned against one another; only healthy sensors are compared."""
        if signs is not None and not said[LIDAR]:
            self._alignment.update(frame, signs, [name for name in said if name != LIDAR and not said[name]])
        if self._alignment.lidar is not None and LIDAR in said:
            said[LIDAR].setdefault(
                "miscalibrated", f"turned by {self._alignment.lidar:.1f} degrees against most cameras"
            )
        for name, degrees in self._alignment.cameras.items():
            said[name]["miscalibrated"] = f"turned by {degrees:.1f} degrees against the LiDAR"
        for name in self.loads.keys() & self._alignment.loads.keys():
            loads = self.loads[name]
            loads["miscalibrated"] = max(loads.get("miscalibrated", 0.0), self._alignment.loads[name])

    def _joined(self, name: str, said: dict[Status, str], now: int) -> SensorHealth:
        """The health of a sensor from what this frame and those before it say, the worst first."""
        before = self._found[name]
        found = {
            status: _Finding(before[status].since if status in before else now, now, reason)
            for status, reason in said.items()
        }
        if not {"missing", "dark", "saturated"} & found.keys():  # where nothing can be seen, nothing else is said
            held = {s: f for s, f in before.items() if s in _PASSING and now - f.last < 1e6 * self.limits.held}
            found = {status: {**held, **found}[status] for status in _WORST_FIRST if status in held | found}
        self._found[name] = found
        if not found:
            old = self._health.get(name)
            return old if old is not None and old.status == "ok" else SensorHealth("ok", now, "")
        worst, *also = (SensorHealth(status, each.since, each.reason) for status, each in found.items())
        return SensorHealth(worst.status, worst.since, worst.reason, tuple(also))

    def _camera(self, name: str, camera: Camera, now: int) -> Readings:
        """Possible faults of a camera that gave a picture, the worst first."""
        limits = self.limits.camera
        signs = picture_signs(camera.image, limits)
        stuck = self._stuck(name, signs.sample, camera.timestamp, now)
        late = 1e-6 * abs(now - camera.timestamp)
        black, white = signs.dark / limits.nearly_all, signs.bright / limits.nearly_all
        noise_alone = min(signs.dark / limits.most, signs.texture / limits.shapeless)
        blind = max(black, white, noise_alone) > 1
        yield "dark", black, f"nearly all pixels are below {limits.dark_level} of 255"
        yield "dark", noise_alone, f"most pixels are below {limits.dark_level} of 255, and the rest is noise"
        yield "saturated", white, f"nearly all pixels are above {limits.bright_level} of 255"
        if not blind:
            yield "frozen", stuck / limits.frozen, f"the same picture for {stuck:.2f} s"
        when = "before" if camera.timestamp < now else "after"
        yield "late", late / limits.late, f"taken {late:.2f} s {when} the frame"
        if blind:
            return
        yield (
            "corrupt",
            signs.torn / limits.torn,
            f"a row of blocks does not fit the others in {signs.torn:.0%} of its width",
        )
        yield "noisy", signs.noise / limits.noisy, f"noise of {signs.noise:.0f} grey levels"
        yield "blurred", _load_below(signs.texture - SLOPE, limits.smooth), "no fine texture"

    def _lidar(self, frame: Frame, signs: SweepSigns | None) -> Readings:
        """Possible faults of the LiDAR, the worst first."""
        if frame.points is None or signs is None:
            yield "missing", math.inf, "no points" if frame.points is None else "a sweep without a return"
            return
        limits = self.limits.lidar
        usual = self._usual_counts(signs, frame.timestamp)
        stuck = self._stuck(LIDAR, frame.points[:4096, :4].tobytes(), None, frame.timestamp)
        yield "frozen", stuck / limits.frozen, f"the same points for {stuck:.2f} s"
        yield "late", signs.age / limits.late, f"the newest point is {signs.age:.2f} s older than the frame"
        far = f"{signs.impossible:.0%} of the points are not finite or beyond {limits.far:.0f} m"
        yield "corrupt", signs.impossible / limits.impossible, far
        garbled = f"returns beyond {limits.beyond:.0f} m in {signs.garbled:.0%} of the azimuth, as no street has"
        yield "corrupt", signs.garbled / limits.garbled, garbled
        yield "noisy", signs.roughness / limits.rough, f"the ground nearby is rough by {signs.roughness:.2f} m"
        few = _load_below(signs.points, limits.fewest_points)
        lost = min(map(_load_below, (signs.points, signs.density), limits.thinned * usual))
        yield "thinned", few, f"{signs.points} points"
        yield "thinned", lost, f"{signs.points} points, where {usual[0]:.0f} were usual"
        if max(few, lost) <= 1:
            yield "thinned", self._broken(frame, signs), "gaps between the points on the ground"
        if signs.age <= limits.late:  # the ground where the vehicle was before may be another
            yield from self._level(signs, frame.timestamp)

    def _broken(self, frame: Frame, signs: SweepSigns) -> float:
        """How near the scan is to having gaps that it has had since the drive began; 0 once it had none, since counts
        are usual from then on.
        """
        limits = self.limits.lidar
        garbage = signs.impossible > limits.impossible or signs.garbled > limits.garbled
        if self._whole or signs.age > limits.late or garbage:
            return 0.0
        # Noise leaves no steps to see gaps by, and where the ground is not where it should be, something else is seen.
        if not (signs.roughness <= limits.rough and abs(signs.height) <= limits.raised):
            return 0.0
        share = unbroken(frame, limits)
        self._whole = share >= limits.broken
        return _load_below(share, limits.broken)

    def _level(self, signs: SweepSigns, now: int) -> Readings:
        """Whether the LiDAR sees the ground where the calibration says that it is.

        The median of some frames says so, since springs and the road's own shape move the ground.
        """
        limits = self.limits.lidar
        if not math.isnan(signs.height):
            self._grounds.append((now, *signs.tilt, signs.height))
        while self._grounds and now - self._grounds[0][0] > 1e6 * limits.levelled:
            self._grounds.popleft()
        if len(self._grounds) < 3:
            return
        _, along, across, height = np.median(self._grounds, axis=0)
        tilt = math.degrees(math.atan(math.hypot(along, across)))
        load = max(tilt / limits.tilted, abs(height) / limits.raised)
        yield "miscalibrated", load, f"the ground is tilted by {tilt:.1f} degrees, and at {height:.2f} m"

    def _stuck(self, name: str, content: bytes, timestamp: int | None, now: int) -> float:
        """Seconds since a sensor first gave this content, or anything with this timestamp."""
        seen = self._seen.get(name)
        if seen is None or (content != seen.content and (timestamp is None or timestamp != seen.timestamp)):
            seen = self._seen[name] = _Seen(content, timestamp, now)
        return 1e-6 * (now - seen.first)

    def _usual_counts(self, signs: SweepSigns, now: int) -> np.ndarray:
        """Points and density that are usual: the most lately, of which fewer make less within a minute."""
        counts = np.array([signs.points, signs.density], float)
        forgotten = (
            0.0
            if self._counted is None
            else 1 - math.exp(-1e-6 * max(0, now - self._counted) / self.limits.lidar.usual)
        )
        self._usual = np.maximum(counts, self._usual + forgotten * (counts - self._usual))
        self._counted = now
        return self._usual


def _faults(readings: Readings) -> tuple[dict[Status, str], dict[Status, float]]:
    """The reasons of the statuses that are faults, and how near its limit each status is; of a status that is there
    twice the first that is a fault.
    """
    said: dict[Status, str] = {}
    loads: dict[Status, float] = {}
    for status, load, reason in readings:
        if status in said:
            continue
        if load > 1:
            said[status] = reason
        if not load <= loads.get(status, -math.inf):
            loads[status] = load
    return said, loads


def _load_below(value: float, limit: float) -> float:
    """How near a value that is healthy above a limit is to it."""
    return limit / max(value, 1e-9)
