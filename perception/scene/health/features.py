"""Signs of faults in what one sensor gave for one frame. numpy and OpenCV only; a frame takes 2 ms.

The limits are in `limits.py`; `monitor.py` follows them over a drive.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from perception.evaluation.corrupt import MCU
from perception.frame import Frame
from perception.scene.health.limits import CameraLimits, LidarLimits

ROWS = 16  # of a picture that are looked at
SMALL = 128  # pixels of the shorter side: too few rows and blocks to speak of their texture
SLOPE = 0.25  # texture of a smooth slope
FLAT = 0.1  # quantile of the pieces of a picture, from the smoothest on, that shows its noise: sky, road, walls
EVERY = 64  # one point in so many says which points are the latest sweep's, and whether they are measurements
MOST = 16_000  # points of a sweep that are looked at; of more every other, or fewer


@dataclass(frozen=True)
class PictureSigns:
    """Signs of one picture."""

    sample: bytes  # of its pixels, that tells it from another
    dark: float  # share of the pixels below the dark level
    bright: float  # and above the bright one
    texture: float  # mean difference over 1 pixel by that over 4: SLOPE of a smooth slope, 1 of noise
    noise: float  # grey levels, standard deviation where the picture is flattest
    torn: float  # share of a row of blocks that fits neither the row above nor that below; of the second worst row


@dataclass(frozen=True)
class SweepSigns:
    """Signs of the latest sweep in a frame's points."""

    points: int
    age: float  # s, of its newest point
    impossible: float  # share of the points that are not finite or too far; of all sweeps
    garbled: float  # share of the azimuth whose returns are far and bright as no street is
    density: float  # points of each cell of 1 x 1 m nearby that has any, of the ground for the most part
    roughness: float  # m, of the ground within cells of 1 x 1 m; NaN where there is too little of it
    tilt: tuple[float, float]  # slopes of the ground along x and y of the vehicle; NaN where there is too little of it
    height: float  # m, of the ground below the vehicle's origin; NaN as well


def picture_signs(image: np.ndarray, limits: CameraLimits) -> PictureSigns:
    """Signs of a picture (H, W, 3) uint8; of one that is SMALL its light alone."""
    step = max(1, len(image) // ROWS)
    rows = cv2.extractChannel(image[step // 2 :: step], 1)  # green
    sample = rows.tobytes()
    dark = np.count_nonzero(rows < limits.dark_level) / rows.size
    bright = np.count_nonzero(rows > limits.bright_level) / rows.size
    if min(image.shape[:2]) < SMALL:
        return PictureSigns(sample, dark, bright, texture=1.0, noise=0.0, torn=0.0)
    # Rows have their say alone: a few that are torn do not sharpen a blurred picture.
    fine, coarse = (cv2.absdiff(rows[:, n:], rows[:, :-n]).sum(axis=1, dtype=np.uint32) for n in (1, 4))
    noise = _noise(rows)
    return PictureSigns(
        sample,
        dark,
        bright,
        texture=float(np.median(fine / np.maximum(coarse, 1))),
        noise=noise,
        torn=_torn(image, max(limits.seam, 2 * noise)),
    )


def _torn(image: np.ndarray, seam: float) -> float:
    """Share of a row of JPEG's blocks that is parted from both its neighbours, the row above and that below.

    In the right half, because what derails a decoder does so to the end of the row. An edge in the street may run along
    one such seam; along both seams of two rows none does for long. So it is the second worst row that counts.

    Args:
        seam: grey levels that part two blocks; twice the noise at least, of which there is less in the mean of four.
    """
    blocks = image.shape[1] // MCU
    right = image[:, (blocks - blocks // 2) * MCU : blocks * MCU]
    size = (blocks // 2, (len(image) - 1) // MCU)
    upper, lower = (
        cv2.resize(np.ascontiguousarray(right[y::MCU, 2::4, 1][: size[1]]), size, interpolation=cv2.INTER_AREA)
        for y in (MCU - 1, MCU)
    )  # each the mean of four pixels of a block
    parted = cv2.absdiff(upper, lower) > seam
    return float(np.sort((parted[1:] & parted[:-1]).mean(axis=1))[-2])


def _noise(rows: np.ndarray) -> float:
    """Standard deviation of white noise on the rows (R, W), where second differences leave least of the picture.

    Immerkaer, "Fast noise variance estimation", 1996, in one dimension and of the flattest pieces, so that grass and
    leaves are no noise: of noise alone a second difference has sqrt(6) and its magnitude sqrt(2 / pi) of that.
    """
    second = cv2.convertScaleAbs(cv2.filter2D(rows, cv2.CV_16S, np.array([[1.0, -2.0, 1.0]])))
    pieces = cv2.resize(second, (rows.shape[1] // MCU, len(rows)), interpolation=cv2.INTER_AREA)
    return float(lowest(pieces.ravel(), FLAT)) / math.sqrt(6 * 2 / math.pi)


def sweep_signs(frame: Frame, limits: LidarLimits) -> SweepSigns:
    """Signs of the points of a frame, which has some, the latest sweep first."""
    assert frame.points is not None
    sample = frame.points[::EVERY]
    age, latest = float(sample[:, 4].min()), latest_sweep(frame, limits)
    measured = (np.abs(sample[:, :3].T) < limits.far).all(axis=0)  # NaN is not
    step = -(-len(latest) // MOST)
    density, roughness, plane = _ground(in_vehicle(frame, latest[::step]), limits)
    return SweepSigns(
        points=len(latest),
        age=age,
        impossible=1 - np.count_nonzero(measured) / len(sample),
        garbled=_garbled(latest[:: 4 * step], limits),
        density=step * density,
        roughness=roughness,
        tilt=(float(plane[0]), float(plane[1])),
        height=float(plane[2]),
    )


def latest_sweep(frame: Frame, limits: LidarLimits) -> np.ndarray:
    """The points (M, 5) of the latest sweep of a frame, which has some and that one first."""
    assert frame.points is not None
    ages = frame.points[::EVERY, 4]
    return frame.points[: EVERY * max(1, np.count_nonzero(ages < ages.min() + limits.sweep))]


def in_vehicle(frame: Frame, points: np.ndarray) -> np.ndarray:
    """The x y z (M, 3) of points (M, 5) of a frame in the vehicle's frame."""
    points = points[:, :3]
    if frame.reference != "ego":
        move = (np.linalg.inv(frame.global_from_ego) @ frame.global_from_reference).astype(np.float32)
        points = points @ move[:3, :3].T + move[:3, 3]
    return points


def lowest(values: np.ndarray, share: float) -> np.ndarray:
    """The value (scalar) that this share of the values is below; np.quantile takes five times as long."""
    place = int(share * len(values))
    return np.asarray(np.partition(values, place)[place])


def _garbled(points: np.ndarray, limits: LidarLimits) -> float:
    """Share of the azimuth that holds garbage: ranges as far as they can be said, and all intensities alike.

    Most beams meet the ground nearer, so of healthy packets few returns are beyond.
    """
    sectors = limits.sectors
    x, y = points[:, 0], points[:, 1]
    with np.errstate(invalid="ignore", over="ignore"):
        turn = np.nan_to_num((np.arctan2(y, x) / (2 * np.pi) + 0.5) * sectors)
        sector = turn.astype(np.int64) % sectors
        count = np.maximum(np.bincount(sector, minlength=sectors), 1)
        share = np.bincount(sector, x * x + y * y > limits.beyond**2, sectors) / count
        bright = np.bincount(sector, points[:, 3], sectors) / count
    return float(np.count_nonzero((share > limits.beyond_share) & (bright > limits.bright) & (count >= 4))) / sectors


def _ground(points: np.ndarray, limits: LidarLimits) -> tuple[float, float, np.ndarray]:
    """Points in a cell of the ground near the vehicle, the ground's roughness in m and its plane z = a x + b y + c.

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
    flat = np.flatnonzero(spread <= lowest(spread, 0.5))  # not kerbs, wheels and hedges
    places, mean = places[flat], mean[flat]
    plane, off = np.zeros(3), np.abs(mean)
    for _ in range(3):  # what lies lower or higher than most, such as a pavement, has no say after the first
        on = off <= 2 * lowest(off, 0.5) + 0.02
        kept = places[on]
        plane = np.linalg.solve(kept.T @ kept + 1e-6 * np.eye(3), kept.T @ mean[on])
        off = np.abs(mean - places @ plane)
    return density, float(lowest(spread, 0.25)), plane
