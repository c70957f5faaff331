"""Online check of the extrinsic rotations of cameras and LiDAR, from the edges of sweeps and images over a drive.

Levinson and Thrun, "Automatic online calibration of cameras and lasers", RSS 2013, accept a calibration as long as no
neighbouring one fits better. Here the neighbours are rotations up to 5.5 degrees, and fits are summed over the last
frames.

Not detected are rotations about a camera's optical axis; translations (0.05 m move an object at 10 m by 0.3 degrees);
any error while the vehicle stands, or with too few edges, as on open land or in fog at night. Six cameras with
different rotations may be reported as a rotated LiDAR. If the LiDAR rotates during the drive, cameras are reported as
well at first. docs/health.md gives detection rates and delays.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import lru_cache

import cv2
import numpy as np

from perception.frame import Camera, Frame
from perception.rig import LidarLimits
from perception.scene.health.features import SweepFeatures, in_vehicle_frame, latest_sweep, quantile

# Edges of a sweep and of an image, and their correlation over rotations of the camera. numpy and OpenCV only.
#
# Levinson and Thrun, "Automatic online calibration of cameras and lasers", RSS 2013: an object boundary is a jump in
# range and an edge in the image, at the same place if the calibration is right. Images are unrolled on a cylinder,
# where a rotation of the camera is the same shift everywhere.

STEP = np.radians(0.5)  # of the cylinder's pixels; the firings of an HDL-32E are 0.33 degrees apart
REACH = 11  # pixels, largest shift: 5.5 degrees
SHIFTS = 2 * REACH + 1
MAX_AZIMUTH, MAX_SLOPE = 1.05, 0.4  # rad to each side, and slope up and down, of the cylinder
NEIGHBOURHOOD = 25  # pixels over which edges are normalised
CONTRAST = 0.3  # square roots of grey levels, added to the mean edge by which edges are divided
MAX_EDGE = 3.0  # relative to the edges around it
PARTS = 12  # sixths of the image's width, each for side edges and top edges
MAX_POINTS = 150  # of each kind in an image

Edges = tuple[np.ndarray, np.ndarray]


def range_edges(points: np.ndarray, origin: np.ndarray, ground: np.ndarray, limits: LidarLimits) -> Edges:
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
        kept = np.flatnonzero(
            (height > limits.above[0] + limits.above[1] * away) & (away > limits.range[0]) & (away < limits.range[1])
        )
    # Far to near, so that the nearest point of a cell is written last; small integers sort fast.
    kept = kept[np.argsort((-100 * away[kept]).astype(np.int16), kind="stable")]
    away, elevation = away[kept], np.arctan2(z[kept], away[kept])
    row = np.floor((elevation - math.radians(limits.lowest)) / math.radians(limits.row)).astype(np.int64)
    inside = np.flatnonzero((row >= 0) & (row < limits.rows))
    if not len(inside):
        return np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32)
    kept, away, elevation, row = kept[inside], away[inside], elevation[inside], row[inside]
    columns, rows = round(360 / limits.column), limits.rows
    column = ((np.arctan2(y[kept], x[kept]) / (2 * np.pi) + 0.5) * columns).astype(np.int64) % columns

    # Padded by two cells: periodic in azimuth, and infinite above the highest beam.
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
    tops = tops[elevation[tops] < quantile(elevation, 0.99) - math.radians(limits.topmost)]
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


def fit(camera: Camera, camera_from_vehicle: np.ndarray, edges: Edges, limits: LidarLimits) -> tuple[np.ndarray, int]:
    """Correlation of the sweep's edges with the shifted edges of the image.

    Args:
        camera_from_vehicle: (4, 4) by the calibration, with the vehicle at the time of the sweep.
        edges: of the sweep, in the vehicle's frame.

    Returns:
        (PARTS, SHIFTS, SHIFTS) sums for shifts down and right, for side edges and then top edges in each sixth of the
        width, and the number of points in all sums.
    """
    first, edge_images = image_edges(camera)
    parts, count = [], 0
    move = camera_from_vehicle.astype(np.float32)
    for points, edge, lift in zip(edges, edge_images, (0.0, math.radians(limits.half_beam)), strict=True):
        x, y, z = (points @ move[:3, :3].T + move[:3, 3]).T
        ahead = np.flatnonzero(z > 1)
        x, y, z = x[ahead], y[ahead], z[ahead]
        u = np.rint((np.arctan2(x, z) - first[0]) / STEP).astype(np.int64)
        v = np.rint((y / np.hypot(x, z) - lift - first[1]) / STEP).astype(np.int64)
        shown = np.flatnonzero((u >= 0) & (u < edge.shape[1]) & (v >= 0) & (v < edge.shape[0]))
        shown = shown[:: -(-len(shown) // MAX_POINTS) or 1]
        padded = cv2.copyMakeBorder(edge, REACH, REACH, REACH, REACH, cv2.BORDER_CONSTANT)
        windows = np.lib.stride_tricks.sliding_window_view(padded, (SHIFTS, SHIFTS))
        part = u[shown] * (PARTS // 2) // edge.shape[1] == np.arange(PARTS // 2)[:, None]
        parts.append(part.astype(np.float32) @ windows[v[shown], u[shown]].reshape(len(shown), SHIFTS * SHIFTS))
        count += len(shown)
    return np.concatenate(parts).reshape(PARTS, SHIFTS, SHIFTS), count


CAMERAS_PER_FRAME = 3  # cameras are evaluated in turn; after a round of all, findings are updated
YAWS = STEP * np.arange(-REACH, REACH + 1)  # rad, of the LiDAR about the vertical
TILTS = np.radians(np.arange(-3.0, 3.1))  # rad, of the LiDAR about the horizontal axes


# A rotation is reported if it fits better than all tolerated ones by MIN_GAIN and MIN_AGREEMENT.
MIN_MOTION = 1.0  # m, and
MIN_INTERVAL = 0.4  # s between evaluated frames, so that their edges differ
KEPT = 0.85  # of the sum over earlier frames, at each frame: the last six or seven count
MIN_FRAMES = 3
TOLERANCE = math.radians(0.9)
MIN_GAIN = 1.4  # relative to the square root of the number of points
MIN_AGREEMENT = 2.0  # sum of the gains of image parts relative to their norm: at least four parts agree
HYSTERESIS = 0.5  # factor of both limits for rotations that were reported in the frame before
MIN_CAMERAS = 3  # and more than half of them: a rotation that they share is the LiDAR's

_DOWN, _RIGHT = STEP * np.mgrid[-REACH : REACH + 1, -REACH : REACH + 1]  # rad, of every shift of an image


@dataclass
class _Fit:
    """Fits of rotations of one camera, summed over the frames with exponential forgetting."""

    parts: np.ndarray = field(default_factory=lambda: np.zeros((PARTS, SHIFTS, SHIFTS)))  # as returned by `fit`
    points: float = 0.0
    frames: int = 0
    vehicle_from_camera: np.ndarray = field(default_factory=lambda: np.eye(3))

    def add(self, frame: Frame, camera: Camera, edges: Edges, limits: LidarLimits) -> None:
        global_from_camera = camera.global_from_ego @ camera.ego_from_camera
        camera_from_vehicle = np.linalg.inv(global_from_camera) @ frame.global_from_ego
        parts, points = fit(camera, camera_from_vehicle, edges, limits)
        self.parts = KEPT * self.parts + parts
        self.points = KEPT * self.points + points
        self.frames, self.vehicle_from_camera = self.frames + 1, camera.ego_from_camera[:3, :3]


class Alignment:
    """Finds rotated cameras and a rotated LiDAR over one drive, in bounded memory."""

    def __init__(self, limits: LidarLimits) -> None:
        self.lidar: float | None = None  # degrees by which the LiDAR is rotated; None if it is not
        self.cameras: dict[str, float] = {}  # rotated camera -> degrees
        self.loads: dict[str, float] = {}  # camera -> evidence of a rotation relative to its limit; rotated above 1
        self.lidar_load: float | None = None  # the same of the LiDAR
        self._limits = limits
        self._fits: dict[str, _Fit] = {}
        self._round: set[str] = set()  # cameras evaluated in the current round
        self._round_start: tuple[int, np.ndarray] | None = None  # time (us) and position of the vehicle

    def update(self, frame: Frame, features: SweepFeatures, healthy: Collection[str]) -> None:
        """Add a frame; ignored unless the vehicle has moved.

        Args:
            features: of its healthy sweep.
            healthy: cameras of the frame without other faults.
        """
        waiting = [name for name in healthy if name not in self._round]
        if not waiting or (not self._round and not self._has_moved(frame)):
            return
        ground, lidar = np.nan_to_num([*features.tilt, features.height]), self._limits
        origin = np.mean([camera.ego_from_camera[:3, 3] for camera in frame.cameras.values()], axis=0)
        edges = range_edges(in_vehicle_frame(frame, latest_sweep(frame)), origin, ground, lidar)
        for name in waiting[:CAMERAS_PER_FRAME]:
            self._fits.setdefault(name, _Fit()).add(frame, frame.cameras[name], edges, self._limits)
            self._round.add(name)
        if len(waiting) <= CAMERAS_PER_FRAME:
            self._round.clear()
            self._update_findings()

    def _has_moved(self, frame: Frame) -> bool:
        """Whether the vehicle has moved since the start of the last round; if so, a new round begins."""
        time, position = self._round_start or (-math.inf, np.full(3, np.inf))
        here = frame.global_from_ego[:3, 3]
        if abs(frame.timestamp - time) <= 1e6 * MIN_INTERVAL or np.linalg.norm(here - position) <= MIN_MOTION:
            return False
        self._round_start = frame.timestamp, here
        return True

    def _update_findings(self) -> None:
        known = {name: each for name, each in self._fits.items() if each.frames >= MIN_FRAMES}
        common, evidence = _common(list(known.values()))
        self.loads, self.lidar_load = {}, evidence if self.lidar is None else evidence / HYSTERESIS
        self.lidar = math.degrees(np.linalg.norm(common)) if self.lidar_load > 1 else None
        before, self.cameras = self.cameras, {}
        for name, each in known.items():
            degrees, evidence = _rotation(each, common)
            self.loads[name] = evidence / HYSTERESIS if name in before else evidence
            if self.loads[name] > 1:
                self.cameras[name] = degrees


def _rotation(camera: _Fit, common: np.ndarray) -> tuple[float, float]:
    """Rotation in degrees of a camera against a LiDAR that is itself rotated by `common` (3,), and its evidence."""
    down, right = _shift(camera.vehicle_from_camera, common)
    away, fits = np.hypot(_DOWN - down, _RIGHT - right).ravel(), camera.parts.sum(axis=0).ravel()
    best, tolerated = int(fits.argmax()), _argmax(fits, away <= TOLERANCE)
    gains = camera.parts.reshape(PARTS, -1)[:, [best, tolerated]]
    return math.degrees(away[best]), _evidence(gains[:, 0] - gains[:, 1], camera.points)


def _common(fits: list[_Fit]) -> tuple[np.ndarray, float]:
    """Rotation vector (3,) rad of the LiDAR, in the vehicle's frame, on which most cameras agree, and its evidence.
    Zero with too little agreement or evidence.
    """
    none = np.zeros(3)
    if len(fits) < MIN_CAMERAS:
        return none, 0.0
    rotations = np.stack(np.meshgrid(TILTS, TILTS, YAWS, indexing="ij"), axis=-1).reshape(-1, 3)
    places = []
    for each in fits:
        down, right = np.rint(_shift(each.vehicle_from_camera, rotations) / STEP).astype(np.int64) + REACH
        places.append(down.clip(0, 2 * REACH) * SHIFTS + right.clip(0, 2 * REACH))
    per_camera = [each.parts.sum(axis=0).ravel()[place] for each, place in zip(fits, places, strict=True)]
    total = np.sum(per_camera, axis=0)
    best = int(total.argmax())
    tolerated = _argmax(total, np.linalg.norm(rotations, axis=1) <= TOLERANCE)
    gains, agreeing = [], 0
    for each, place in zip(fits, places, strict=True):
        parts = each.parts.reshape(PARTS, -1)[:, place[[best, tolerated]]]
        gains.append(parts[:, 0] - parts[:, 1])
        gains_enough = gains[-1].sum() > HYSTERESIS * MIN_GAIN * math.sqrt(each.points)
        agreeing += gains_enough and _rotation(each, rotations[best])[1] <= HYSTERESIS
    evidence = _evidence(np.concatenate(gains), sum(each.points for each in fits))
    if agreeing < MIN_CAMERAS or agreeing <= len(fits) / 2:
        return none, min(evidence, agreeing / max(MIN_CAMERAS, len(fits) / 2))
    return (rotations[best] if evidence > HYSTERESIS else none), evidence


def _evidence(gains: np.ndarray, points: float) -> float:
    """Evidence of a rotation relative to the limit of a new finding, which is 1.

    Args:
        gains: (N,) by how much the rotation fits better than the best tolerated one, in each part.
        points: number of points in all parts.
    """
    gain = gains.sum()
    if gain <= 0:
        return 0.0
    return float(min(gain / (MIN_GAIN * math.sqrt(points)), gain / (MIN_AGREEMENT * np.linalg.norm(gains))))


def _shift(vehicle_from_camera: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """Shift down and right (2, ...) rad of an image against a LiDAR rotated by a vector (..., 3) in the vehicle's
    frame."""
    in_camera = rotation @ vehicle_from_camera
    return np.stack([in_camera[..., 0], -in_camera[..., 1]])


def _argmax(fits: np.ndarray, among: np.ndarray) -> int:
    """Index of the best fit among those of a mask (N,)."""
    return int(np.where(among, fits, -np.inf).argmax())
