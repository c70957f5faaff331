"""Readings of one LiDAR over a drive. numpy only, but for the gaps in its scan."""

from __future__ import annotations

import math
from collections import deque

import numpy as np
from scipy.spatial import cKDTree

from perception.frame import Frame
from perception.rig import LidarLimits
from perception.scene.health.features import (
    LastContent,
    Readings,
    SweepFeatures,
    in_vehicle_frame,
    latest_sweep,
    load_below,
)

# Gaps in a spinning LiDAR's scan of the ground, from a single sweep and without knowing the sensor.
#
# A rotating beam meets flat ground in a ring of points at constant azimuth steps, and rings are farther apart than the
# points on them. So the two nearest neighbours of a point are on its ring, one step away on either side. If a share p
# of the returns remains at random, both are there with probability p^2.

MAX_QUERIES = 1500  # ground points whose neighbours are searched


def ring_steps(frame: Frame, limits: LidarLimits, height: float = 0.0) -> tuple[float, float]:
    """Share of ground points with both neighbours on their ring, one step away, and this step in rad; NaN with too few
    ground points.

    Valid for a single spinning LiDAR.

    Args:
        height: m, of the ground relative to the vehicle's origin.
    """
    x, y, z = in_vehicle_frame(frame, latest_sweep(frame)).T.astype(np.float64)
    away = np.hypot(x, y)
    with np.errstate(invalid="ignore"):
        on_ground = np.abs(z - height) < limits.flat
        ground = np.flatnonzero((away > limits.ring[0]) & (away < limits.ring[1]) & on_ground)
    if len(ground) < limits.min_ground_points:
        return math.nan, math.nan
    queried = ground[:: -(-len(ground) // MAX_QUERIES)]
    places = np.stack([x, y], axis=1)
    distances, _ = cKDTree(places[ground]).query(places[queried], 3)  # the first is the point itself
    nearest, next_nearest = (distances[:, 1:] / away[queried, None]).T  # as angles
    step = float(np.quantile(nearest, limits.step_quantile))
    return (float(np.mean(next_nearest < limits.max_step * step)), step) if step > 0 else (math.nan, math.nan)


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
        far = f"{features.impossible:.0%} of the points are not finite or beyond {limits.far:.0f} m"
        yield "corrupt", features.impossible / limits.impossible, far
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
