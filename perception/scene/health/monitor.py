"""Monitors the health of the sensors over a drive, from cheap features of each frame. numpy and OpenCV only.

Of the calibration it checks one thing: the ground plane shows a tilted or raised LiDAR.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import get_args

import numpy as np

from perception.frame import Camera, Frame, Scan
from perception.rig import CameraLimits, LidarLimits, Sensors
from perception.scene.health.features import (
    SLOPE_TEXTURE,
    LastContent,
    Readings,
    Status,
    SweepFeatures,
    image_features,
    load_below,
    ring_steps,
    sweep_features,
)


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


VEHICLE = "vehicle"  # stands among the sensors for what a frame says besides their data, such as its pose
_WORST_FIRST = get_args(Status)[1:]
_INTERMITTENT = _WORST_FIRST[5:]  # not visible in every frame
_HELD = 1.0  # s that an intermittent finding is kept after the last frame that showed it

LATE = 0.15  # s between a scan and the frame, as for other sensors


@dataclass
class _Finding:
    since: int  # us, time of the first frame that showed it
    last: int  # us, time of the last frame that showed it
    reason: str


class HealthMonitor:
    """Watches the sensors of one drive."""

    def __init__(self, sensors: Sensors) -> None:
        self.sensors = sensors
        self._health: dict[str, SensorHealth] = {}
        self._findings: dict[str, dict[Status, _Finding]] = {name: {} for name in sensors.names}
        self._pictures = {name: LastContent() for name in sensors.cameras}
        self._limits = [sensors.lidar_limits.get(name, LidarLimits()) for name in sensors.lidars]
        self._lidars = [LidarReadings(limits, len(sensors.lidars) == 1) for limits in self._limits]

    def update(self, frame: Frame, findings: Mapping[str, str] | None = None) -> dict[str, SensorHealth]:
        """Health of every sensor at a frame with these findings of `admit`; from its first one on also of VEHICLE."""
        found = findings or {}
        faults: dict[str, dict[Status, str]] = {}
        for i, name in enumerate(self.sensors.lidars):
            own = frame.of_lidar(i)
            features = sweep_features(own, self._limits[i]) if own.points is not None and len(own.points) else None
            readings = self._lidars[i].readings(own, features)
            if name in found:
                readings = chain([("missing" if own.points is None else "corrupt", math.inf, found[name])], readings)
            faults[name] = _faults(readings)
        for name in self.sensors.cameras:
            if name in frame.cameras:
                readings = self._camera_readings(name, frame.cameras[name], frame.timestamp)
            else:
                readings = iter([("missing", math.inf, found.get(name, "no picture"))])
            faults[name] = _faults(readings)
        for name in self.sensors.scanners:
            faults[name] = _faults(_scan_readings(frame.scans.get(name), frame.timestamp, found.get(name, "no scan")))
        reasons = [f"{name}: {why}" for name, why in found.items() if name in Frame.__dataclass_fields__]
        names = self.sensors.names
        if reasons or VEHICLE in self._findings:
            names, faults[VEHICLE] = (*names, VEHICLE), {"corrupt": "; ".join(reasons)} if reasons else {}
        self._health = {name: self._update_findings(name, faults[name], frame.timestamp) for name in names}
        return dict(self._health)

    def _update_findings(self, name: str, faults: dict[Status, str], now: int) -> SensorHealth:
        """The health of a sensor from the faults in this frame and earlier findings."""
        before = self._findings.get(name, {})
        found = {
            status: _Finding(before[status].since if status in before else now, now, reason)
            for status, reason in faults.items()
        }
        if not {"missing", "dark", "saturated"} & found.keys():  # else nothing more can be known
            held = {s: f for s, f in before.items() if s in _INTERMITTENT and abs(now - f.last) < 1e6 * _HELD}
            found = {status: {**held, **found}[status] for status in _WORST_FIRST if status in held | found}
        self._findings[name] = found
        if not found:
            old = self._health.get(name)
            return old if old is not None and old.status == "ok" else SensorHealth("ok", now, "")
        worst, *also = (SensorHealth(status, each.since, each.reason) for status, each in found.items())
        return SensorHealth(worst.status, worst.since, worst.reason, tuple(also))

    def _camera_readings(self, name: str, camera: Camera, now: int) -> Readings:
        """Readings of a camera with an image, worst first."""
        limits = self.sensors.camera_limits.get(name, CameraLimits())
        features = image_features(camera.image, limits)
        stuck = self._pictures[name].seconds_unchanged(features.sample, camera.timestamp, now)
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
        yield "blurred", load_below(features.texture - SLOPE_TEXTURE, limits.smooth), "no fine texture"


def _scan_readings(scan: Scan | None, now: int, lost: str) -> Readings:
    if scan is None:
        yield "missing", math.inf, lost
        return
    late = 1e-6 * abs(now - scan.timestamp)
    yield "late", late / LATE, f"measured {late:.2f} s {'before' if scan.timestamp < now else 'after'} the frame"


def _faults(readings: Readings) -> dict[Status, str]:
    """Status -> reason of the first reading that is a fault."""
    faults: dict[Status, str] = {}
    for status, load, reason in readings:
        if load > 1:
            faults.setdefault(status, reason)
    return faults


class LidarReadings:
    """What is usual for a LiDAR in a drive, and its readings frame by frame.

    Args:
        alone: whether it is the vehicle's only LiDAR, near the middle of the roof, so that its rings on the ground lie
            around the vehicle and gaps in them can be found.
    """

    def __init__(self, limits: LidarLimits, alone: bool) -> None:
        self._limits, self._alone = limits, alone
        self._content = LastContent()
        self._usual = np.zeros(2)  # usual points of a sweep, and usual density nearby
        self._counted: int | None = None  # us, time of their last update
        self._had_no_gaps = False  # a sweep of the drive had no gaps
        self._ground_planes: deque[tuple[int, float, float, float]] = deque(maxlen=64)  # time (us), slopes and height

    def readings(self, frame: Frame, features: SweepFeatures | None) -> Readings:
        """Readings of the LiDAR, worst first."""
        if frame.points is None or features is None:
            yield "missing", math.inf, "no points" if frame.points is None else "a sweep without a return"
            return
        limits = self._limits
        usual = self._update_usual_counts(features, frame.timestamp)
        stuck = self._content.seconds_unchanged(frame.points[:4096, :4].tobytes(), None, frame.timestamp)
        yield "frozen", stuck / limits.frozen, f"the same points for {stuck:.2f} s"
        yield "late", features.age / limits.late, f"the newest point is {features.age:.2f} s older than the frame"
        wrong = f"not finite, beyond {limits.far:.0f} m or of an intensity below 0"
        yield "corrupt", features.impossible / limits.impossible, f"{features.impossible:.0%} of the points are {wrong}"
        garbled = f"returns beyond {limits.beyond:.0f} m in {features.garbled:.0%} of the azimuth, as no street has"
        yield "corrupt", features.garbled / limits.garbled, garbled
        yield "noisy", features.roughness / limits.rough, f"the ground nearby is rough by {features.roughness:.2f} m"
        few = load_below(features.points, limits.min_points)
        lost = min(map(load_below, (features.points, features.density), limits.thinned * usual))
        # A rig without limits of its own is often what these two are about, so they name the key.
        yield "thinned", few, f"{features.points} points, below the rig's health.min_points {limits.min_points}"
        yield "thinned", lost, f"{features.points} points, where {usual[0]:.0f} were usual"
        if max(few, lost) <= 1:
            share, least = self._unbroken_share(frame, features), limits.broken
            gaps = f"gaps: {share:.2f} of the points on the ground have both neighbours, below the rig's health.broken"
            yield "thinned", load_below(share, least), f"{gaps} {least:g}"
        if features.age <= limits.late:  # late points show the ground of an earlier position
            yield from self._check_ground(features, frame.timestamp)

    def _unbroken_share(self, frame: Frame, features: SweepFeatures) -> float:
        """Share of `ring_steps`; infinity where gaps are not looked for: after a scan without gaps, from which on
        the usual counts detect losses."""
        limits = self._limits
        garbage = features.impossible > limits.impossible or features.garbled > limits.garbled
        if self._had_no_gaps or not self._alone or features.age > limits.late or garbage:
            return math.inf
        # Gaps are not measurable in noise, nor if the ground is not where the calibration puts it.
        if not (features.roughness <= limits.rough and abs(features.height) <= limits.raised):
            return math.inf
        aside = abs(features.height) > limits.flat  # as it was on the drives of the training, from which `raised` is
        share, _ = ring_steps(frame, limits, features.height if aside else 0.0)
        self._had_no_gaps = share >= limits.broken
        return share

    def _check_ground(self, features: SweepFeatures, now: int) -> Readings:
        """Reading of the ground plane against the calibration, as the median of several frames, because suspension
        and road shape tilt single ones."""
        limits = self._limits
        if not math.isnan(features.height):
            self._ground_planes.append((now, *features.tilt, features.height))
        while self._ground_planes and abs(now - self._ground_planes[0][0]) > 1e6 * limits.levelled:
            self._ground_planes.popleft()
        if len(self._ground_planes) < 3:
            return
        _, along, across, height = np.median(self._ground_planes, axis=0)
        tilt = math.degrees(math.atan(math.hypot(along, across)))
        load = max(tilt / limits.tilted, abs(height) / limits.raised)
        yield "miscalibrated", load, f"the ground is tilted by {tilt:.1f} degrees, and at {height:.2f} m"

    def _update_usual_counts(self, features: SweepFeatures, now: int) -> np.ndarray:
        """Usual points and density: their maximum, which decays with the time constant `LidarLimits.usual`."""
        counts = np.array([features.points, features.density], float)
        forgotten = (
            0.0 if self._counted is None else 1 - math.exp(-1e-6 * max(0, now - self._counted) / self._limits.usual)
        )
        self._usual = np.maximum(counts, self._usual + forgotten * (counts - self._usual))
        self._counted = now
        return self._usual
