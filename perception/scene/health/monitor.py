"""Monitors the health of the sensors over a drive, from cheap features of each frame. numpy and OpenCV only.

Calibration is checked in two ways: `alignment` finds cameras that are rotated against the LiDAR (only while the LiDAR
is healthy), and a LiDAR that is rotated against most cameras; the ground plane shows a tilted or raised LiDAR.
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
from perception.scene.health.features import SLOPE_TEXTURE, SweepFeatures, image_features, sweep_features
from perception.scene.health.limits import HealthLimits
from perception.scene.health.scan_gaps import ring_continuity

# Worst first.
Status = Literal[
    "ok", "missing", "dark", "saturated", "frozen", "late", "corrupt", "noisy", "blurred", "thinned", "miscalibrated"
]


@dataclass(frozen=True)
class SensorHealth:
    """The health of one sensor."""

    status: Status
    since: int  # us, time of the first frame of this status
    reason: str  # '' while ok
    also: tuple[SensorHealth, ...] = ()  # further faults

    @property
    def findings(self) -> tuple[SensorHealth, ...]:
        """All faults of the sensor, worst first."""
        return () if self.status == "ok" else (self, *self.also)

    @property
    def words(self) -> str:
        """All statuses, such as 'late + blurred'."""
        return " + ".join(each.status for each in (self, *self.also))

    @property
    def reasons(self) -> str:
        return "; ".join(each.reason for each in (self, *self.also))


Readings = Iterator[tuple[Status, float, str]]  # status, load (feature relative to its limit; a fault above 1), reason
_WORST_FIRST = get_args(Status)[1:]
_INTERMITTENT = _WORST_FIRST[5:]  # not visible in every frame


@dataclass
class _LastContent:
    """The latest data of a sensor, to detect frozen sensors."""

    content: bytes
    timestamp: int | None  # us, of the data
    first: int  # us, time of the first frame with it


@dataclass
class _Finding:
    since: int  # us, time of the first frame that showed it
    last: int  # us, time of the last frame that showed it
    reason: str


class HealthMonitor:
    """Watches the sensors of one drive.

    Args:
        sensors: of the network: LIDAR_TOP and names of cameras.
        limits: None for 8-bit cameras and an HDL-32E.
    """

    def __init__(self, sensors: Sequence[str], limits: HealthLimits | None = None) -> None:
        self.sensors = tuple(sensors)
        self.limits = limits or HealthLimits()
        # Sensor -> evaluated status -> load in the last frame: a fault above 1, NaN if it could not be measured.
        self.loads: dict[str, dict[Status, float]] = {}
        self._health: dict[str, SensorHealth] = {}
        self._findings: dict[str, dict[Status, _Finding]] = {name: {} for name in self.sensors}
        self._last_content: dict[str, _LastContent] = {}
        self._usual = np.zeros(2)  # usual points of a sweep, and usual density nearby
        self._counted: int | None = None  # us, time of their last update
        self._had_no_gaps = False  # a sweep of the drive had no gaps
        self._ground_planes: deque[tuple[int, float, float, float]] = deque(maxlen=64)  # time (us), slopes and height
        self._alignment = Alignment(self.limits)

    def update(self, frame: Frame) -> dict[str, SensorHealth]:
        """Health of every sensor at the time of a frame."""
        features = None
        if LIDAR in self.sensors and frame.points is not None and len(frame.points):
            features = sweep_features(frame, self.limits.lidar)
        faults: dict[str, dict[Status, str]] = {}
        for name in self.sensors:
            if name == LIDAR:
                readings = self._lidar_readings(frame, features)
            elif name in frame.cameras:
                readings = self._camera_readings(name, frame.cameras[name], frame.timestamp)
            else:
                readings = iter([("missing", math.inf, "no picture")])
            faults[name], self.loads[name] = _faults(readings)
        self._check_alignment(frame, features, faults)
        self._health = {name: self._update_findings(name, faults[name], frame.timestamp) for name in self.sensors}
        return dict(self._health)

    def _check_alignment(
        self, frame: Frame, features: SweepFeatures | None, faults: dict[str, dict[Status, str]]
    ) -> None:
        """Add faults of rotated sensors; only healthy sensors are compared."""
        if features is not None and not faults[LIDAR]:
            self._alignment.update(frame, features, [name for name in faults if name != LIDAR and not faults[name]])
        if self._alignment.lidar is not None and LIDAR in faults:
            faults[LIDAR].setdefault(
                "miscalibrated", f"turned by {self._alignment.lidar:.1f} degrees against most cameras"
            )
        for name, degrees in self._alignment.cameras.items():
            faults[name]["miscalibrated"] = f"turned by {degrees:.1f} degrees against the LiDAR"
        for name in self.loads.keys() & self._alignment.loads.keys():
            loads = self.loads[name]
            loads["miscalibrated"] = max(loads.get("miscalibrated", 0.0), self._alignment.loads[name])

    def _update_findings(self, name: str, faults: dict[Status, str], now: int) -> SensorHealth:
        """The health of a sensor from the faults in this frame and earlier findings."""
        before = self._findings[name]
        found = {
            status: _Finding(before[status].since if status in before else now, now, reason)
            for status, reason in faults.items()
        }
        if not {"missing", "dark", "saturated"} & found.keys():  # else nothing more can be known
            held = {s: f for s, f in before.items() if s in _INTERMITTENT and now - f.last < 1e6 * self.limits.held}
            found = {status: {**held, **found}[status] for status in _WORST_FIRST if status in held | found}
        self._findings[name] = found
        if not found:
            old = self._health.get(name)
            return old if old is not None and old.status == "ok" else SensorHealth("ok", now, "")
        worst, *also = (SensorHealth(status, each.since, each.reason) for status, each in found.items())
        return SensorHealth(worst.status, worst.since, worst.reason, tuple(also))

    def _camera_readings(self, name: str, camera: Camera, now: int) -> Readings:
        """Readings of a camera with an image, worst first."""
        limits = self.limits.camera
        features = image_features(camera.image, limits)
        stuck = self._seconds_unchanged(name, features.sample, camera.timestamp, now)
        late = 1e-6 * abs(now - camera.timestamp)
        black, white = features.dark / limits.nearly_all, features.bright / limits.nearly_all
        noise_alone = min(features.dark / limits.mostly_dark, features.texture / limits.shapeless)
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
            features.torn / limits.torn,
            f"a row of blocks does not fit the others in {features.torn:.0%} of its width",
        )
        yield "noisy", features.noise / limits.noisy, f"noise of {features.noise:.0f} grey levels"
        yield "blurred", _load_below(features.texture - SLOPE_TEXTURE, limits.smooth), "no fine texture"

    def _lidar_readings(self, frame: Frame, features: SweepFeatures | None) -> Readings:
        """Readings of the LiDAR, worst first."""
        if frame.points is None or features is None:
            yield "missing", math.inf, "no points" if frame.points is None else "a sweep without a return"
            return
        limits = self.limits.lidar
        usual = self._update_usual_counts(features, frame.timestamp)
        stuck = self._seconds_unchanged(LIDAR, frame.points[:4096, :4].tobytes(), None, frame.timestamp)
        yield "frozen", stuck / limits.frozen, f"the same points for {stuck:.2f} s"
        yield "late", features.age / limits.late, f"the newest point is {features.age:.2f} s older than the frame"
        far = f"{features.impossible:.0%} of the points are not finite or beyond {limits.far:.0f} m"
        yield "corrupt", features.impossible / limits.impossible, far
        garbled = f"returns beyond {limits.beyond:.0f} m in {features.garbled:.0%} of the azimuth, as no street has"
        yield "corrupt", features.garbled / limits.garbled, garbled
        yield "noisy", features.roughness / limits.rough, f"the ground nearby is rough by {features.roughness:.2f} m"
        few = _load_below(features.points, limits.min_points)
        lost = min(map(_load_below, (features.points, features.density), limits.thinned * usual))
        yield "thinned", few, f"{features.points} points"
        yield "thinned", lost, f"{features.points} points, where {usual[0]:.0f} were usual"
        if max(few, lost) <= 1:
            yield "thinned", self._gaps_load(frame, features), "gaps between the points on the ground"
        if features.age <= limits.late:  # late points show the ground of an earlier position
            yield from self._check_ground(features, frame.timestamp)

    def _gaps_load(self, frame: Frame, features: SweepFeatures) -> float:
        """Load of gaps in the scan since the drive began; 0 after a scan without gaps, from which on the usual counts
        detect losses."""
        limits = self.limits.lidar
        garbage = features.impossible > limits.impossible or features.garbled > limits.garbled
        if self._had_no_gaps or features.age > limits.late or garbage:
            return 0.0
        # Gaps are not measurable in noise, nor if the ground is not where the calibration puts it.
        if not (features.roughness <= limits.rough and abs(features.height) <= limits.raised):
            return 0.0
        share = ring_continuity(frame, limits)
        self._had_no_gaps = share >= limits.broken
        return _load_below(share, limits.broken)

    def _check_ground(self, features: SweepFeatures, now: int) -> Readings:
        """Reading of the ground plane against the calibration, as the median of several frames, because suspension
        and road shape tilt single ones."""
        limits = self.limits.lidar
        if not math.isnan(features.height):
            self._ground_planes.append((now, *features.tilt, features.height))
        while self._ground_planes and now - self._ground_planes[0][0] > 1e6 * limits.levelled:
            self._ground_planes.popleft()
        if len(self._ground_planes) < 3:
            return
        _, along, across, height = np.median(self._ground_planes, axis=0)
        tilt = math.degrees(math.atan(math.hypot(along, across)))
        load = max(tilt / limits.tilted, abs(height) / limits.raised)
        yield "miscalibrated", load, f"the ground is tilted by {tilt:.1f} degrees, and at {height:.2f} m"

    def _seconds_unchanged(self, name: str, content: bytes, timestamp: int | None, now: int) -> float:
        """Seconds since the sensor first had this content, or any content with this timestamp."""
        seen = self._last_content.get(name)
        if seen is None or (content != seen.content and (timestamp is None or timestamp != seen.timestamp)):
            seen = self._last_content[name] = _LastContent(content, timestamp, now)
        return 1e-6 * (now - seen.first)

    def _update_usual_counts(self, features: SweepFeatures, now: int) -> np.ndarray:
        """Usual points and density: their maximum, which decays with the time constant `LidarLimits.usual`."""
        counts = np.array([features.points, features.density], float)
        forgotten = (
            0.0
            if self._counted is None
            else 1 - math.exp(-1e-6 * max(0, now - self._counted) / self.limits.lidar.usual)
        )
        self._usual = np.maximum(counts, self._usual + forgotten * (counts - self._usual))
        self._counted = now
        return self._usual


def _faults(readings: Readings) -> tuple[dict[Status, str], dict[Status, float]]:
    """Status -> reason of the first reading that is a fault, and status -> largest load of its readings up to it."""
    faults: dict[Status, str] = {}
    loads: dict[Status, float] = {}
    for status, load, reason in readings:
        if status in faults:
            continue
        if load > 1:
            faults[status] = reason
        if not load <= loads.get(status, -math.inf):
            loads[status] = load
    return faults, loads


def _load_below(value: float, limit: float) -> float:
    """Load of a value that is healthy above its limit."""
    return limit / max(value, 1e-9)
