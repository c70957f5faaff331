"""Features of one image or sweep that indicate sensor faults. numpy, scipy and OpenCV only.

Their limits are in `rig.py`; `monitor.py` evaluates them over a drive.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from scipy.spatial import cKDTree

from perception.datasets.files import MCU
from perception.datasets.sweeps import is_measurement
from perception.frame import Frame
from perception.rig import CameraLimits, LidarLimits

ROWS = 16  # sampled rows of an image
MIN_SIDE = 128  # pixels of the shorter side, below which texture, noise and seams are not evaluated
SLOPE_TEXTURE = 0.25  # texture of a smooth gradient
FLAT_QUANTILE = 0.1  # of the pieces of an image, from the smoothest on, at which the noise is measured
# Of the points that determine the age of the newest and the share of impossible ones. A prime, because points read with
# another number of columns repeat after as many points.
SAMPLE_STRIDE = 61
MAX_QUERIES = 1500  # ground points whose neighbours are searched
MAX_POINTS = 16_000  # of a sweep; larger ones are subsampled


@dataclass(frozen=True)
class ImageFeatures:
    """Features of one image."""

    sample: bytes  # sampled pixels, to recognise a repeated image
    dark: float  # share of pixels below the dark level
    bright: float  # share of pixels above the bright level
    texture: float  # ratio of mean differences over 1 pixel and 4: SLOPE_TEXTURE for a smooth gradient, 1 for noise
    noise: float  # grey levels, standard deviation in the flattest pieces
    torn: float  # share of the second worst row of blocks that has seams to the rows above and below


@dataclass(frozen=True)
class SweepFeatures:
    """Features of the latest sweep in a frame's points."""

    points: int
    age: float  # s, of its newest point
    impossible: float  # share of points that are no measurement, in all sweeps
    garbled: float  # share of the azimuth with implausibly far and bright returns
    density: float  # points per occupied cell of 1 x 1 m nearby, mostly ground
    roughness: float  # m, of the ground within cells of 1 x 1 m; NaN with too little ground
    tilt: tuple[float, float]  # slopes of the ground along x and y of the vehicle; NaN with too little ground
    height: float  # m, of the ground relative to the vehicle's origin; NaN with too little ground


def image_features(image: np.ndarray, limits: CameraLimits) -> ImageFeatures:
    """Features of an image (H, W, 3) uint8; only brightness if it is smaller than MIN_SIDE."""
    step = max(1, len(image) // ROWS)
    rows = cv2.extractChannel(image[step // 2 :: step], 1)  # green
    sample = rows.tobytes()
    dark = np.count_nonzero(rows < limits.dark_level) / rows.size
    bright = np.count_nonzero(rows > limits.bright_level) / rows.size
    if min(image.shape[:2]) < MIN_SIDE:
        return ImageFeatures(sample, dark, bright, texture=1.0, noise=0.0, torn=0.0)
    # The median over rows: a few torn ones do not hide that an image is blurred.
    fine, coarse = (cv2.absdiff(rows[:, n:], rows[:, :-n]).sum(axis=1, dtype=np.uint32) for n in (1, 4))
    noise = _noise(rows)
    return ImageFeatures(
        sample,
        dark,
        bright,
        texture=float(np.median(fine / np.maximum(coarse, 1))),
        noise=noise,
        torn=_torn_share(image, max(limits.seam, 2 * noise)),
    )


def _torn_share(image: np.ndarray, seam: float) -> float:
    """Share of a row of JPEG blocks with seams to both the row above and the row below, of the second worst row.

    Only the right half is evaluated, because a decoding error lasts to the end of the row. An edge in the scene may
    coincide with one seam, but rarely with both seams of two rows, hence the second worst.

    Args:
        seam: grey levels between two blocks; at least twice the noise.
    """
    blocks = image.shape[1] // MCU
    right = image[:, (blocks - blocks // 2) * MCU : blocks * MCU]
    size = (blocks // 2, (len(image) - 1) // MCU)
    upper, lower = (
        cv2.resize(np.ascontiguousarray(right[y::MCU, 2::4, 1][: size[1]]), size, interpolation=cv2.INTER_AREA)
        for y in (MCU - 1, MCU)
    )  # means of four pixels of each block
    parted = cv2.absdiff(upper, lower) > seam
    return float(np.sort((parted[1:] & parted[:-1]).mean(axis=1))[-2])


def _noise(rows: np.ndarray) -> float:
    """Standard deviation of white noise on the rows (R, W), from second differences in the flattest pieces.

    Immerkaer, "Fast noise variance estimation", 1996, in one dimension: for white noise the second difference has
    sqrt(6) times its standard deviation, and the mean magnitude is sqrt(2 / pi) times that. The flattest pieces exclude
    texture such as grass and leaves.
    """
    second = cv2.convertScaleAbs(cv2.filter2D(rows, cv2.CV_16S, np.array([[1.0, -2.0, 1.0]])))
    pieces = cv2.resize(second, (rows.shape[1] // MCU, len(rows)), interpolation=cv2.INTER_AREA)
    return float(quantile(pieces.ravel(), FLAT_QUANTILE)) / math.sqrt(6 * 2 / math.pi)


def sweep_features(frame: Frame, limits: LidarLimits) -> SweepFeatures:
    """Features of the points of a frame, at least one."""
    assert frame.points is not None
    sample = frame.points[::SAMPLE_STRIDE]
    age, latest = float(sample[:, 4].min()), latest_sweep(frame)
    measured = is_measurement(sample, limits.far)
    step = -(-len(latest) // MAX_POINTS)
    density, roughness, plane = _fit_ground(in_vehicle_frame(frame, latest[::step]), limits)
    return SweepFeatures(
        points=len(latest),
        age=age,
        impossible=1 - np.count_nonzero(measured) / len(sample),
        garbled=_garbled_share(latest[:: 4 * step], limits),
        density=step * density,
        roughness=roughness,
        tilt=(float(plane[0]), float(plane[1])),
        height=float(plane[2]),
    )


def latest_sweep(frame: Frame) -> np.ndarray:
    """The points (M, 5) of the latest sweep that has some: the keyframe's, if it has; the frame must have points."""
    assert frame.points is not None
    assert frame.sweep_of_point is not None
    return np.compress(frame.sweep_of_point == frame.sweep_of_point.min(), frame.points, axis=0)


def in_vehicle_frame(frame: Frame, points: np.ndarray) -> np.ndarray:
    """x y z (M, 3) in the vehicle's frame of points (M, 5) of a frame."""
    points = points[:, :3]
    if frame.reference != "ego":
        move = (np.linalg.inv(frame.global_from_ego) @ frame.global_from_reference).astype(np.float32)
        points = points @ move[:3, :3].T + move[:3, 3]
    return points


def quantile(values: np.ndarray, share: float) -> np.ndarray:
    """The quantile (scalar) without interpolation, faster than np.quantile."""
    place = int(share * len(values))
    return np.asarray(np.partition(values, place)[place])


def _garbled_share(points: np.ndarray, limits: LidarLimits) -> float:
    """Share of the azimuth with damaged packets: random ranges and intensities, so that many returns are beyond
    `limits.beyond`, while most beams of healthy packets meet the ground nearer."""
    sectors = limits.sectors
    x, y = points[:, 0], points[:, 1]
    with np.errstate(invalid="ignore", over="ignore"):
        azimuth = np.nan_to_num((np.arctan2(y, x) / (2 * np.pi) + 0.5) * sectors)
        sector = azimuth.astype(np.int64) % sectors
        count = np.maximum(np.bincount(sector, minlength=sectors), 1)
        share = np.bincount(sector, x * x + y * y > limits.beyond**2, sectors) / count
        bright = np.bincount(sector, points[:, 3], sectors) / count
    return float(np.count_nonzero((share > limits.beyond_share) & (bright > limits.bright) & (count >= 4))) / sectors


def _fit_ground(points: np.ndarray, limits: LidarLimits) -> tuple[float, float, np.ndarray]:
    """Points per cell of the ground near the vehicle, its roughness in m and its plane z = a x + b y + c.

    Args:
        points: (N, 3) in the vehicle's frame.
    """
    nearest, farthest = limits.near
    x, y, z = np.ascontiguousarray(points.T)
    with np.errstate(invalid="ignore", over="ignore"):
        away = x * x + y * y
        near = np.flatnonzero((away > nearest**2) & (away < farthest**2) & (np.abs(z) < limits.level))
    side = 2 * math.ceil(farthest)
    z = z[near].astype(np.float64)
    cell = (x[near] + side // 2).astype(np.int64) * side + (y[near] + side // 2).astype(np.int64)
    count, low, square = (np.bincount(cell, weight, side * side) for weight in (None, z, z * z))
    density = len(near) / max(1, np.count_nonzero(count))
    full = np.flatnonzero(count >= limits.cell_points)
    if len(full) < 8:
        return density, math.nan, np.full(3, math.nan)
    count, mean = count[full], low[full] / count[full]
    spread = np.sqrt(np.maximum(square[full] / count - mean * mean, 0))
    places = np.stack([full // side + 0.5 - side // 2, full % side + 0.5 - side // 2, np.ones(len(full))], axis=1)
    flat = np.flatnonzero(spread <= quantile(spread, 0.5))  # excludes kerbs, wheels and hedges
    places, mean = places[flat], mean[flat]
    plane, off = np.zeros(3), np.abs(mean)
    for _ in range(3):  # refits exclude cells of another height, such as pavements
        on = off <= 2 * quantile(off, 0.5) + 0.02
        kept = places[on]
        plane = np.linalg.solve(kept.T @ kept + 1e-6 * np.eye(3), kept.T @ mean[on])
        off = np.abs(mean - places @ plane)
    return density, float(quantile(spread, 0.25)), plane


def ring_steps(frame: Frame, limits: LidarLimits, height: float = 0.0) -> tuple[float, float]:
    """Share of ground points with both neighbours on their ring, one step away, and this step in rad; NaN with too few
    ground points.

    Valid for a single spinning LiDAR. Its beam meets flat ground in a ring of points at constant azimuth steps, and
    rings are farther apart than the points on them. So the two nearest neighbours of a point are on its ring, one step
    away on either side. If a share p of the returns remains at random, both are there with probability p^2.

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


# Worst first.
Status = Literal[
    "ok", "missing", "dark", "saturated", "frozen", "late", "corrupt", "noisy", "blurred", "thinned", "miscalibrated"
]
# Status, load (feature relative to its limit; a fault above 1) and reason.
Readings = Iterator[tuple[Status, float, str]]


class LastContent:
    """The latest data of a sensor, to detect that it is frozen."""

    def __init__(self) -> None:
        self._content: str | None = None  # hash
        self._timestamp: int | None = None  # us, of the data
        self._first = 0  # us, time of the first frame with them

    def seconds_unchanged(self, content: bytes, timestamp: int | None, now: int) -> float:
        """Seconds since the sensor first had this content, or any content with this timestamp."""
        known = hashlib.blake2b(content, digest_size=16).hexdigest()
        if known != self._content and (timestamp is None or timestamp != self._timestamp):
            self._content, self._timestamp, self._first = known, timestamp, now
        return 1e-6 * (now - self._first)


def load_below(value: float, limit: float) -> float:
    """Load of a value that is healthy above its limit."""
    return limit / max(value, 1e-9)
