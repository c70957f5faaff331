"""Finds a LiDAR's cloud whose axes are turned by a right angle, mirrored or swapped, from the edges of the pictures.

An object's boundary is a jump in range and an edge in the image, at the same place if the axes are right (Levinson and
Thrun, "Automatic online calibration of cameras and lasers", RSS 2013). The question here is which of eight maps of the
axes x and y makes them meet. It needs no motion.

Images are unrolled on a cylinder, where a rotation of the camera is the same shift everywhere. numpy and OpenCV only.
"""

from __future__ import annotations

import math
from functools import lru_cache

import cv2
import numpy as np

from perception.frame import Camera, Frame
from perception.rig import LidarLimits
from perception.scene.health.features import in_vehicle_frame, latest_sweep, quantile, sweep_features
from perception.scene.health.statistics import LEVEL

STEP = np.radians(0.5)  # of the cylinder's pixels; the firings of an HDL-32E are 0.33 degrees apart
REACH = 1  # pixels, largest shift: 0.5 degrees, by which a calibration may be off
SHIFTS = 2 * REACH + 1
MAX_AZIMUTH, MAX_SLOPE = 1.05, 0.4  # rad to each side, and slope up and down, of the cylinder
NEIGHBOURHOOD = 25  # pixels over which edges are normalised
CONTRAST = 0.3  # square roots of grey levels, added to the mean edge by which edges are divided
MAX_EDGE = 3.0  # relative to the edges around it
MAX_POINTS = 150  # of each kind in an image

# The range image of a sweep.
COLUMNS = 900  # of 0.4 degrees of azimuth, a little more than between the firings of an HDL-32E
ROW = 1.4  # degrees of elevation, a little more than between its beams
ROWS = 24
LOWEST = -15.0  # degrees, elevation of the first row
RANGE = (4.0, 60.0)  # m; nearer, the parallax to the cameras is too large
ABOVE = (0.3, 0.02)  # m, and slope over the range, below which points are ground
BEHIND = (0.5, 1.1)  # m, and factor of the range, by which the background is farther
TOPMOST = 2.5  # degrees below the highest beam, where tops are not object tops
HALF_BEAM = 0.66  # degrees, mean distance of an object's top to its highest return

Edges = tuple[np.ndarray, np.ndarray]

_QUARTER = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
_SWAP = np.array([[0.0, 1, 0], [1, 0, 0], [0, 0, 1]])
_MAPS = tuple(np.linalg.matrix_power(_QUARTER, k) @ flip for flip in (np.eye(3), _SWAP) for k in range(4))
_NAMES = (  # of all but the first, which changes nothing
    *(f"turned by {angle} degrees to the left" for angle in (90, 180, 270)),
    *("with x and y swapped, as in another order of the fields", "with the sign of x changed"),
    *("with x and y swapped and both signs changed", "with the sign of y changed"),
)
# Of the best map: above chance, above streets that look alike, and relative to the axes as they are (docs/check.md).
MIN_AGREEMENT, MIN_PER_ROOT, MIN_RATIO = 9.0, 6.0, 2.0


class TurnedCloud:
    """Collects how well cloud and pictures agree for each map of the cloud's axes."""

    def __init__(self, limits: LidarLimits) -> None:
        self._limits = limits.model_copy(update={"level": LEVEL})
        self._sums, self._points, self._frames = np.zeros(len(_MAPS)), np.ones(len(_MAPS)), 0

    def add(self, own: Frame) -> None:
        """Add a frame with the points of the reference LiDAR alone, at least one, in its frame."""
        self._frames += 1
        ground = sweep_features(own, self._limits)
        vehicle_from_lidar = np.linalg.inv(own.global_from_ego) @ own.global_from_reference
        plane, origin = np.nan_to_num([*ground.tilt, ground.height]), vehicle_from_lidar[:3, 3]
        edges = range_edges(in_vehicle_frame(own, latest_sweep(own)), origin, plane)
        for i, axes in enumerate(_MAPS):
            turn_back = vehicle_from_lidar[:3, :3] @ axes.T @ vehicle_from_lidar[:3, :3].T
            sides, tops = (((each - origin) @ turn_back.T + origin).astype(np.float32) for each in edges)
            for camera in own.cameras.values():
                camera_from_global = np.linalg.inv(camera.global_from_ego @ camera.ego_from_camera)
                sums, count = correlate(camera, camera_from_global @ own.global_from_ego, (sides, tops))
                self._sums[i] += sums.max()
                self._points[i] += count

    @property
    def agreement(self) -> np.ndarray:
        """(8,) of each map: the sum of the edges at the points, relative to the square root of their number."""
        return np.asarray(self._sums / np.sqrt(self._points))

    @property
    def load(self) -> float:
        """The agreement of the best other map relative to what makes it a finding; above 1 the cloud is turned."""
        least = max(MIN_AGREEMENT, MIN_PER_ROOT * self._frames**0.5, MIN_RATIO * self.agreement[0])
        return float(self.agreement[1:].max() / least)

    @property
    def how(self) -> str:
        """How the cloud is turned, in words, if it is."""
        return _NAMES[int(self.agreement[1:].argmax())]


def range_edges(points: np.ndarray, origin: np.ndarray, ground: np.ndarray) -> Edges:
    """Side edges (S, 3) and top edges (T, 3) of objects above the ground in front of a farther background.

    Args:
        points: (N, 3) of a sweep in the vehicle's frame.
        origin: (3,) m, approximate position of the LiDAR.
        ground: (3,) the plane z = a x + b y + c.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        x, y, z = (points[:, i] - np.float32(origin[i]) for i in range(3))
        away = np.sqrt(x * x + y * y)
        height = z + (origin[2] - ground[2] - ground[:2] @ origin[:2]).astype(np.float32)
        height -= np.float32(ground[0]) * x + np.float32(ground[1]) * y
        kept = np.flatnonzero((height > ABOVE[0] + ABOVE[1] * away) & (away > RANGE[0]) & (away < RANGE[1]))
    # Far to near, so that the nearest point of a cell is written last; small integers sort fast.
    kept = kept[np.argsort((-100 * away[kept]).astype(np.int16), kind="stable")]
    away, elevation = away[kept], np.arctan2(z[kept], away[kept])
    row = np.floor((elevation - math.radians(LOWEST)) / math.radians(ROW)).astype(np.int64)
    inside = np.flatnonzero((row >= 0) & (row < ROWS))
    if not len(inside):
        return np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32)
    kept, away, elevation, row = kept[inside], away[inside], elevation[inside], row[inside]
    column = ((np.arctan2(y[kept], x[kept]) / (2 * np.pi) + 0.5) * COLUMNS).astype(np.int64) % COLUMNS

    # Padded by two cells: periodic in azimuth, and infinite above the highest beam.
    ranges = np.full((ROWS + 2, COLUMNS + 4), np.inf, np.float32)
    first = np.zeros((ROWS, COLUMNS), np.int64)
    ranges[row, column + 2], first[row, column] = away, np.arange(len(kept))
    ranges[:, :2], ranges[:, -2:] = ranges[:, -4:-2], ranges[:, 2:4]
    near = ranges[:ROWS, 2:-2]
    far = BEHIND[1] * near + np.float32(BEHIND[0])
    left = np.minimum(ranges[:ROWS, 3:-1], ranges[:ROWS, 4:]) > far
    right = np.minimum(ranges[:ROWS, 1:-3], ranges[:ROWS, :-4]) > far
    above = np.minimum(ranges[1:-1, 2:-2], ranges[2:, 2:-2]) > far
    seen = np.isfinite(near)
    sides, tops = first[seen & (left | right)], first[seen & above]
    tops = tops[elevation[tops] < quantile(elevation, 0.99) - math.radians(TOPMOST)]
    return points[kept[sides]], points[kept[tops]]


@lru_cache(maxsize=32)
def _cylinder(
    width: int, height: int, fx: float, fy: float, cx: float, cy: float
) -> tuple[np.ndarray, int, tuple[np.ndarray, np.ndarray]]:
    """The cylinder of an image: its first azimuth and slope (2,), the stride of the image rows to sample, and the maps
    of its pixels (H, W) into the sampled rows at half the width.

    The maps are fixed-point, because OpenCV's interpolation of float32 maps depends on its version.
    """
    azimuths = np.arctan((np.array([0.0, width - 1]) - cx) / fx).clip(-MAX_AZIMUTH, MAX_AZIMUTH)
    slopes = ((np.array([0.0, height - 1]) - cy) / fy).clip(-MAX_SLOPE, MAX_SLOPE)
    azimuth, slope = (np.arange(first, last, STEP) for first, last in (azimuths, slopes))
    stride = max(1, round(fy * STEP / 1.5))
    u = np.tile((fx * np.tan(azimuth) + cx) / 2 - 0.25, (len(slope), 1))
    v = (fy * slope[:, None] / np.cos(azimuth) + cy - stride // 2) / stride
    maps = cv2.convertMaps(u.astype(np.float32), v.astype(np.float32), cv2.CV_16SC2)
    return np.array([azimuths[0], slopes[0]]), stride, (maps[0], maps[1])


def unroll(camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """First azimuth and slope (2,) of the image's cylinder, and the green channel on it (H, W) uint8.

    Column i is at azimuth first + i STEP (rad, to the right), row j at slope first + j STEP (down), in the camera's
    frame.
    """
    k, (height, width) = camera.intrinsics, camera.image.shape[:2]
    first, stride, maps = _cylinder(width, height, *(float(k[i]) for i in ((0, 0), (1, 1), (0, 2), (1, 2))))
    rows = cv2.extractChannel(camera.image[stride // 2 :: stride], 1)
    rows = cv2.resize(rows, (max(1, width // 2), len(rows)), interpolation=cv2.INTER_LINEAR)  # means of two
    return first, cv2.remap(rows, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def image_edges(camera: Camera) -> tuple[np.ndarray, Edges]:
    """First azimuth and slope (2,) of the image's cylinder, and its vertical (H, W) and horizontal (H, W) edges,
    normalised to their neighbourhood with zero mean."""
    first, grey = unroll(camera)
    roots = np.sqrt(grey, dtype=np.float32)  # in which noise is uniform, and dark and bright contrasts count alike
    found = []
    for across in (1, 0):
        edges = np.abs(cv2.Sobel(roots, cv2.CV_32F, across, 1 - across, ksize=3))
        edges /= cv2.blur(edges, (NEIGHBOURHOOD, NEIGHBOURHOOD)) + np.float32(CONTRAST)
        edges = cv2.GaussianBlur(np.minimum(edges, np.float32(MAX_EDGE)), (5, 5), 1.0)
        found.append(np.subtract(edges, cv2.blur(edges, (NEIGHBOURHOOD, NEIGHBOURHOOD))))
    return first, (found[0], found[1])


def correlate(camera: Camera, camera_from_vehicle: np.ndarray, edges: Edges) -> tuple[np.ndarray, int]:
    """Correlation of the sweep's edges with the shifted edges of the image.

    Args:
        camera_from_vehicle: (4, 4) by the calibration, with the vehicle at the time of the sweep.
        edges: of the sweep, in the vehicle's frame.

    Returns:
        (SHIFTS, SHIFTS) sums for shifts down and right, and the number of points in each sum.
    """
    first, edge_images = image_edges(camera)
    sums, count = np.zeros((SHIFTS, SHIFTS), np.float32), 0
    move = camera_from_vehicle.astype(np.float32)
    for points, edge, lift in zip(edges, edge_images, (0.0, math.radians(HALF_BEAM)), strict=True):
        x, y, z = (points @ move[:3, :3].T + move[:3, 3]).T
        ahead = np.flatnonzero(z > 1)
        x, y, z = x[ahead], y[ahead], z[ahead]
        u = np.rint((np.arctan2(x, z) - first[0]) / STEP).astype(np.int64)
        v = np.rint((y / np.hypot(x, z) - lift - first[1]) / STEP).astype(np.int64)
        shown = np.flatnonzero((u >= 0) & (u < edge.shape[1]) & (v >= 0) & (v < edge.shape[0]))
        shown = shown[:: -(-len(shown) // MAX_POINTS) or 1]
        padded = cv2.copyMakeBorder(edge, REACH, REACH, REACH, REACH, cv2.BORDER_CONSTANT)
        windows = np.lib.stride_tricks.sliding_window_view(padded, (SHIFTS, SHIFTS))
        sums += windows[v[shown], u[shown]].sum(axis=0)
        count += len(shown)
    return sums, count
