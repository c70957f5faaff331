"""Monitors the health of the sensors over a drive, from cheap features of each frame. numpy and OpenCV only.

Of the calibration it checks one thing: the ground plane shows a tilted or raised LiDAR.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import get_args

from perception.frame import Camera, Frame
from perception.rig import CameraLimits, LidarLimits, Sensors
from perception.scene.health.features import (
    SLOPE_TEXTURE,
    LastContent,
    Readings,
    Status,
    image_features,
    load_below,
    sweep_features,
)
from perception.scene.health.lidar_readings import LidarReadings


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


def _faults(readings: Readings) -> dict[Status, str]:
    """Status -> reason of the first reading that is a fault."""
    faults: dict[Status, str] = {}
    for status, load, reason in readings:
        if load > 1:
            faults.setdefault(status, reason)
    return faults
