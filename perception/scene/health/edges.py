"""Where a sweep and a picture have edges, and how well they fit if the camera looked elsewhere. numpy and OpenCV only.

Levinson and Thrun, "Automatic online calibration of cameras and lasers", RSS 2013: where the range jumps, something
ends in front of something else, and there the picture has an edge as well, if the calibration is right. Pictures are
looked at on a cylinder, where a turn of the camera is the same shift everywhere.
"""

from __future__ import annotations

import math
from functools import lru_cache

import cv2
import numpy as np

from perception.frame import Camera
from perception.scene.health.features import lowest
from perception.scene.health.limits import LidarLimits

STEP = np.radians(0.5)  # of the cylinder's pixels; an HDL-32E's firings are 0.33 degrees apart
REACH = 11  # pixels of a shift, 5.5 degrees
SHIFTS = 2 * REACH + 1
WIDEST, STEEPEST = 1.05, 0.4  # rad to each side, and slope up and down, that are looked at
AROUND = 25  # pixels: an edge counts by how much it stands out of so many
CONTRAST = 0.3  # in roots of grey levels, that has half the say of an edge alone on an even wall
LOUDEST = 3.0  # times the edges around it, that an edge counts at most
PARTS = 12  # of the edges in a picture: its sixths, in each the sides and the tops
MOST = 150  # points of each kind in a picture

Edges = tuple[np.ndarray, np.ndarray]


def range_edges(points: np.ndarray, origin: np.ndarray, ground: np.ndarray, limits: LidarLimits) -> Edges:
    """Where what is above the ground ends in front of something at least 10 % farther: sides (S, 3), tops (T, 3).

    Args:
        points: (N, 3) of a sweep in the vehicle's frame.
        origin: (3,) m, about where the LiDAR is; the cameras are near enough.
        ground: (3,) the plane z = a x + b y + c.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        x, y, z = (points[:, i] - np.float32(origin[i]) for i in range(3))
        away = np.sqrt(x * x + y * y)
        height = z + (origin[2] - ground[2] - ground[:2] @ origin[:2]).astype(np.float32)
        height -= np.float32(ground[0]) * x + np.float32(ground[1]) * y
        kept = np.flatnonzero(
            (height > limits.above[0] + limits.above[1] * away) & (away > limits.range[0]) & (away < limits.range[1])
        )
    # The nearest of a cell is written last; small integers are sorted fast.
    kept = kept[np.argsort((-100 * away[kept]).astype(np.int16), kind="stable")]
    away, elevation = away[kept], np.arctan2(z[kept], away[kept])
    row = np.floor((elevation - math.radians(limits.lowest)) / math.radians(limits.row)).astype(np.int64)
    inside = np.flatnonzero((row >= 0) & (row < limits.rows))
    if not len(inside):
        return np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32)
    kept, away, elevation, row = kept[inside], away[inside], elevation[inside], row[inside]
    columns, rows = round(360 / limits.column), limits.rows
    column = ((np.arctan2(y[kept], x[kept]) / (2 * np.pi) + 0.5) * columns).astype(np.int64) % columns

    # Two cells more on every side: what is at 180 degrees is beside what is at -180, and above the view is nothing.
    ranges = np.full((rows + 2, columns + 4), np.inf, np.float32)
    first = np.zeros((rows, columns), np.int64)
    ranges[row, column + 2], first[row, column] = away, np.arange(len(kept))
    ranges[:, :2], ranges[:, -2:] = ranges[:, -4:-2], ranges[:, 2:4]
    near = ranges[:rows, 2:-2]
    far = limits.behind[1] * near + np.float32(limits.behind[0])
    left = np.minimum(ranges[:rows, 3:-1], ranges[:rows, 4:]) > far
    right = np.minimum(ranges[:rows, 1:-3], ranges[:rows, :-4]) > far
    above = np.minimum(ranges[1:-1, 2:-2], ranges[2:, 2:-2]) > far
    seen = np.isfinite(near)
    sides, tops = first[seen & (left | right)], first[seen & above]
    tops = tops[elevation[tops] < lowest(elevation, 0.99) - math.radians(limits.topmost)]
    return points[kept[sides]], points[kept[tops]]


@lru_cache(maxsize=32)
def _cylinder(
    width: int, height: int, fx: float, fy: float, cx: float, cy: float
) -> tuple[np.ndarray, int, tuple[np.ndarray, np.ndarray]]:
    """A picture's cylinder: its first azimuth and slope (2,), which rows of the picture are enough for it (every so
    many), and where its pixels (H, W) are in these rows, in halves of columns.

    The places are OpenCV's fixed-point maps (whole pixels and 32nds), which all its versions interpolate with the same
    integers. With places in float32 the last grey level depends on the version.
    """
    azimuths = np.arctan((np.array([0.0, width - 1]) - cx) / fx).clip(-WIDEST, WIDEST)
    slopes = ((np.array([0.0, height - 1]) - cy) / fy).clip(-STEEPEST, STEEPEST)
    azimuth, slope = (np.arange(first, last, STEP) for first, last in (azimuths, slopes))
    every = max(1, round(fy * STEP / 1.5))
    u = np.tile((fx * np.tan(azimuth) + cx) / 2 - 0.25, (len(slope), 1))
    v = (fy * slope[:, None] / np.cos(azimuth) + cy - every // 2) / every
    places = cv2.convertMaps(u.astype(np.float32), v.astype(np.float32), cv2.CV_16SC2)
    return np.array([azimuths[0], slopes[0]]), every, (places[0], places[1])


def unrolled(camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """First azimuth and slope (2,) rad of the picture's cylinder, and the picture's green on it (H, W) uint8.

    A pixel is STEP wide: column i looks to the azimuth first + i STEP to the right, row j to the slope first + j STEP
    down, in the camera's frame.
    """
    k, (height, width) = camera.intrinsics, camera.image.shape[:2]
    first, every, places = _cylinder(width, height, *(float(k[i]) for i in ((0, 0), (1, 1), (0, 2), (1, 2))))
    rows = cv2.extractChannel(camera.image[every // 2 :: every], 1)
    rows = cv2.resize(rows, (max(1, width // 2), len(rows)), interpolation=cv2.INTER_LINEAR)  # the mean of two
    return first, cv2.remap(rows, *places, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def picture_edges(camera: Camera) -> tuple[np.ndarray, Edges]:
    """First azimuth and slope (2,) of the picture's cylinder, and its edges: upright ones (H, W), level ones (H, W).

    Each counts by how much it stands out of those around it, which are 0 in the mean.
    """
    first, grey = unrolled(camera)
    roots = np.sqrt(grey, dtype=np.float32)  # of which noise is even, and shade counts as light does
    found = []
    for across in (1, 0):
        edges = np.abs(cv2.Sobel(roots, cv2.CV_32F, across, 1 - across, ksize=3))
        edges /= cv2.blur(edges, (AROUND, AROUND)) + np.float32(CONTRAST)
        edges = cv2.GaussianBlur(np.minimum(edges, np.float32(LOUDEST)), (5, 5), 1.0)
        found.append(np.subtract(edges, cv2.blur(edges, (AROUND, AROUND))))
    return first, (found[0], found[1])


def fit(camera: Camera, camera_from_vehicle: np.ndarray, edges: Edges, limits: LidarLimits) -> tuple[np.ndarray, int]:
    """How well the sweep's edges lie on the picture's if these were shifted, (PARTS, SHIFTS, SHIFTS) down and right,
    for the sides and the tops in each PARTS / 2 of the picture's width; and of how many points it is the sum.

    Args:
        camera_from_vehicle: (4, 4) by the calibration, for the vehicle at the time of the sweep.
        edges: of the sweep, in the vehicle's frame.
    """
    first, pictured = picture_edges(camera)
    parts, count = [], 0
    move = camera_from_vehicle.astype(np.float32)
    for points, edge, lift in zip(edges, pictured, (0.0, math.radians(limits.half_beam)), strict=True):
        x, y, z = (points @ move[:3, :3].T + move[:3, 3]).T
        ahead = np.flatnonzero(z > 1)
        x, y, z = x[ahead], y[ahead], z[ahead]
        u = np.rint((np.arctan2(x, z) - first[0]) / STEP).astype(np.int64)
        v = np.rint((y / np.hypot(x, z) - lift - first[1]) / STEP).astype(np.int64)
        shown = np.flatnonzero((u >= 0) & (u < edge.shape[1]) & (v >= 0) & (v < edge.shape[0]))
        shown = shown[:: -(-len(shown) // MOST) or 1]
        padded = cv2.copyMakeBorder(edge, REACH, REACH, REACH, REACH, cv2.BORDER_CONSTANT)
        windows = np.lib.stride_tricks.sliding_window_view(padded, (SHIFTS, SHIFTS))
        part = u[shown] * (PARTS // 2) // edge.shape[1] == np.arange(PARTS // 2)[:, None]
        parts.append(part.astype(np.float32) @ windows[v[shown], u[shown]].reshape(len(shown), SHIFTS * SHIFTS))
        count += len(shown)
    return np.concatenate(parts).reshape(PARTS, SHIFTS, SHIFTS), count
