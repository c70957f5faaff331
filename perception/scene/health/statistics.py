"""What the sensors of healthy drives deliver, as statistics over keyframes. numpy and OpenCV only.

A bundle carries those of the drives that its network was trained on (`deploy.bundle`): `perception check` compares the
sensors of a vehicle with them, and the health monitor takes its limits from them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TypeVar

import numpy as np

from perception.frame import Camera, Frame
from perception.grid import BevGrid
from perception.io.section import Section
from perception.rig import CameraLimits, LidarLimits, Sensors
from perception.scene.health.features import (
    SLOPE_TEXTURE,
    image_features,
    in_vehicle_frame,
    latest_sweep,
    ring_steps,
    sweep_features,
)

QUANTILES = (0.05, 0.5, 0.95)
RANGES = {f"{low:g} to {high:g} m": low for low, high in pairwise((0, 5, 10, 20, 30, 50, 80, math.inf))}
SECTORS = tuple(f"{start} to {start + 10} degrees" for start in range(-180, 180, 10))  # of azimuth
LEVEL = 3.0  # m above and below the vehicle's origin in which ground is searched
MARGIN = 2.0  # how many times as far as 95 % of the keyframes came a limit of the health monitor is
# Limit of the health monitor -> the value that it is about, where more is worse, and where less is.
_MORE = {"late": "offset", "impossible": "impossible", "garbled": "garbled", "rough": "roughness", "tilted": "tilt"}
_MORE |= {"raised": "ground", "noisy": "noise", "torn": "torn"}
_LESS = {"min_points": "points", "broken": "continuity", "smooth": "texture"}

Limits = TypeVar("Limits", LidarLimits, CameraLimits)


class Spread(Section):
    """Quantiles of a value over keyframes: 5 %, 50 % and 95 %."""

    low: float
    median: float
    high: float


class SensorStatistics(Section):
    """Of one sensor. Values that no keyframe shows are left out; `lidar_values` and `camera_values` explain them."""

    keyframes: int  # with data of the sensor
    values: dict[str, Spread]

    def limits(self, usual: Limits) -> Limits:
        """The limits of the health monitor: the usual ones, or MARGIN times as far as these drives came."""
        limits, update = usual.model_dump(), dict[str, float]()
        for name in limits:
            if (more := self.values.get(_MORE.get(name, ""))) is not None:
                update[name] = max(limits[name], MARGIN * max(-more.low, more.high))
            if (less := self.values.get(_LESS.get(name, ""))) is not None:
                update[name] = min(limits[name], type(limits[name])(less.low / MARGIN))
        return usual.model_copy(update=update)


class Statistics(Section):
    """statistics.json: what the sensors of drives deliver; those without data are left out."""

    keyframes: int
    sensors: dict[str, SensorStatistics]

    def with_limits(self, sensors: Sensors) -> Sensors:
        """The sensors with the limits of the health monitor that these drives ask for."""
        lidars = {name: sensors.lidar_limits.get(name, LidarLimits()) for name in sensors.lidars}
        cameras = {name: sensors.camera_limits.get(name, CameraLimits()) for name in sensors.cameras}
        lidars |= {name: self.sensors[name].limits(each) for name, each in lidars.items() if name in self.sensors}
        cameras |= {name: self.sensors[name].limits(each) for name, each in cameras.items() if name in self.sensors}
        return replace(sensors, lidar_limits=lidars, camera_limits=cameras)


def lidar_values(own: Frame, limits: LidarLimits, area: BevGrid) -> dict[str, float]:
    """Values of one LiDAR's points in a frame; NaN where they cannot be known.

    Args:
        own: with the points of this LiDAR alone, at least one, in the frame of the reference LiDAR.
        area: the ground that the network sees; returns outside are cropped.

    Returns:
        As in `SweepFeatures`: points, impossible, garbled, roughness. ground: its height, m. slope_x, slope_y, tilt: of
        the ground, degrees. offset: s from the frame to the newest point. continuity: as of `ring_steps`. rings:
        returns of a firing, of which a spinning LiDAR has one for each ring. intensity, bright: the median and the
        95 % quantile, 0-255. cropped: share of the returns. sweep_rate: Hz, of the sweeps in the frame that are nearest
        to each other, since others may be lost. RANGES, SECTORS: share of the returns in each.
    """
    found, sweep = sweep_features(own, limits.model_copy(update={"level": LEVEL})), latest_sweep(own)
    continuity, step = ring_steps(own, limits, np.nan_to_num(found.height))
    seen = area.inside(in_vehicle_frame(own, sweep) if area.reference == "ego" else sweep)
    x, y = sweep[:, :2].T.astype(np.float64)
    ranges = np.digitize(np.hypot(x, y), [*RANGES.values()]) - 1
    sectors = ((np.arctan2(y, x) / (2 * np.pi) + 0.5) * len(SECTORS)).astype(np.int64) % len(SECTORS)
    return {
        **{name: getattr(found, name) for name in ("points", "impossible", "garbled", "roughness")},
        "ground": found.height,
        "slope_x": math.degrees(math.atan(found.tilt[0])),
        "slope_y": math.degrees(math.atan(found.tilt[1])),
        "tilt": math.degrees(math.atan(math.hypot(*found.tilt))),
        "offset": -found.age,
        "continuity": continuity,
        "rings": len(sweep) * step / (2 * math.pi),
        **dict(zip(("intensity", "bright"), np.quantile(sweep[:, 3], QUANTILES[1:]).tolist(), strict=True)),
        "cropped": 1 - float(np.mean(seen)),
        "sweep_rate": _sweep_rate(own),
        **dict(zip(RANGES, np.bincount(ranges, minlength=len(RANGES)) / len(sweep), strict=True)),
        **dict(zip(SECTORS, np.bincount(sectors, minlength=len(SECTORS)) / len(sweep), strict=True)),
    }


def _sweep_rate(own: Frame) -> float:
    assert own.points is not None
    assert own.sweep_of_point is not None
    numbers = np.unique(own.sweep_of_point)
    ages = [own.points[own.sweep_of_point == number, 4].min() for number in numbers]
    return 1 / max(1e-3, float(np.diff(ages).min())) if len(ages) > 1 else math.nan


def camera_values(frame: Frame, camera: Camera, limits: CameraLimits) -> dict[str, float]:
    """Values of a camera's picture in a frame.

    Returns:
        width, height: pixels. brightness: mean grey level. noise, torn: as in `ImageFeatures`; texture: above that of a
        smooth slope. offset: s from the frame to the picture. x, y, z: of the camera, m; ahead, left, up: of the
        direction in which it looks; in the vehicle's frame.
    """
    found, place = image_features(camera.image, limits), camera.ego_from_camera
    return {
        **dict(zip(("height", "width"), map(float, camera.image.shape), strict=False)),
        "brightness": float(camera.image[::16, ::16].mean()),
        "texture": found.texture - SLOPE_TEXTURE,
        "noise": found.noise,
        "torn": found.torn,
        "offset": 1e-6 * (camera.timestamp - frame.timestamp),
        **dict(zip(("x", "y", "z", "ahead", "left", "up"), place[:3, [3, 2]].T.ravel().tolist(), strict=True)),
    }


class Collector:
    """Collects the values of frames.

    Args:
        area: the ground that the network sees.
    """

    def __init__(self, sensors: Sensors, area: BevGrid) -> None:
        self._sensors, self._area, self._frames = sensors, area, 0
        self._values: dict[str, list[Mapping[str, float]]] = defaultdict(list)

    def add(self, frame: Frame, before: Frame | None) -> None:
        """Add a frame in the frame of the reference LiDAR, and the one just before; None if that is not known."""
        self._frames += 1
        apart = 0 if before is None else 1e-6 * (frame.timestamp - before.timestamp)
        for i, name in enumerate(self._sensors.lidars):
            own = frame.of_lidar(i)
            whole = np.zeros(0, bool) if own.points is None else np.isfinite(own.points).all(axis=1)
            if whole.any():
                limits = self._sensors.lidar_limits.get(name, LidarLimits())
                values = lidar_values(own.select_points(whole), limits, self._area)
                self._values[name].append(values | ({"frame_rate": 1 / apart} if apart > 0 else {}))
        for name in [each for each in self._sensors.cameras if each in frame.cameras]:
            usual = self._sensors.camera_limits.get(name, CameraLimits())
            values, old = camera_values(frame, frame.cameras[name], usual), before and before.cameras.get(name)
            apart = 1e-6 * (frame.cameras[name].timestamp - old.timestamp) if old else 0
            self._values[name].append(values | ({"frame_rate": 1 / apart} if apart > 0 else {}))

    def statistics(self) -> Statistics:
        """Of all frames so far."""
        sensors = {
            name: SensorStatistics(keyframes=len(rows), values=_spreads(rows)) for name, rows in self._values.items()
        }
        return Statistics(keyframes=self._frames, sensors=sensors)


def _spreads(rows: Sequence[Mapping[str, float]]) -> dict[str, Spread]:
    known = {
        name: [row[name] for row in rows if not math.isnan(row.get(name, math.nan))] for row in rows for name in row
    }
    found = {name: np.quantile(values, QUANTILES).tolist() for name, values in known.items() if values}
    return {name: Spread(low=low, median=median, high=high) for name, (low, median, high) in found.items()}
