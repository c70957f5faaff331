"""Finds a LiDAR's cloud whose axes are turned by a right angle, mirrored or swapped, from the edges of the pictures.

`alignment` finds rotations of a few degrees while the vehicle moves. Here the question is which of eight maps of the
axes x and y makes the jumps in range of the sweep meet the edges of the pictures. It needs no motion.
"""

from __future__ import annotations

import numpy as np

from perception.frame import Frame
from perception.rig import LidarLimits
from perception.scene.health.alignment import REACH, fit, range_edges
from perception.scene.health.features import in_vehicle_frame, latest_sweep, sweep_features
from perception.scene.health.statistics import LEVEL

_QUARTER = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
_SWAP = np.array([[0.0, 1, 0], [1, 0, 0], [0, 0, 1]])
_MAPS = tuple(np.linalg.matrix_power(_QUARTER, k) @ flip for flip in (np.eye(3), _SWAP) for k in range(4))
_NAMES = (  # of all but the first, which changes nothing
    *(f"turned by {angle} degrees to the left" for angle in (90, 180, 270)),
    *("with x and y swapped, as in another order of the fields", "with the sign of x changed"),
    *("with x and y swapped and both signs changed", "with the sign of y changed"),
)
_NEAR = slice(REACH - 1, REACH + 2)  # shifts by 0.5 degrees, by which a calibration may be off
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
        edges = range_edges(in_vehicle_frame(own, latest_sweep(own)), origin, plane, self._limits)
        for i, axes in enumerate(_MAPS):
            turn_back = vehicle_from_lidar[:3, :3] @ axes.T @ vehicle_from_lidar[:3, :3].T
            sides, tops = (((each - origin) @ turn_back.T + origin).astype(np.float32) for each in edges)
            for camera in own.cameras.values():
                camera_from_global = np.linalg.inv(camera.global_from_ego @ camera.ego_from_camera)
                parts, count = fit(camera, camera_from_global @ own.global_from_ego, (sides, tops), self._limits)
                self._sums[i] += parts.sum(axis=0)[_NEAR, _NEAR].max()
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
