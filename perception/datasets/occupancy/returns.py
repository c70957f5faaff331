"""Returns of LiDARs with where each ray began. numpy only."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np

from perception.datasets.keyframes import Keyframes, Reads
from perception.frame import Frame

NONE, UNKNOWN = -1, -2  # annotated as none of the point classes; not annotated
_OWN_VEHICLE = 1.5  # m from the LiDAR, within which it meets the roof that it stands on


@dataclass(frozen=True)
class Returns:
    """N returns, in one frame of reference."""

    points: np.ndarray  # (N, 3) float64 m
    origins: np.ndarray  # (N, 3) float64 m, where the LiDAR was when it measured the point
    classes: np.ndarray  # (N,) int16 index of the point class, NONE or UNKNOWN
    ages: np.ndarray  # (N,) s, from the point to the keyframe
    sweeps: np.ndarray  # (N,) uint8 as `Frame.sweep_of_point`
    lidars: np.ndarray  # (N,) uint8 as `Frame.lidar_of_point`

    @property
    def own(self) -> np.ndarray:
        """(N,) bool: of the keyframe, not of an earlier sweep."""
        return np.asarray(self.sweeps == 0)

    def select(self, index: np.ndarray) -> Returns:
        """The returns at the integer or boolean index (M,)."""
        return Returns(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def transformed(self, to_from: np.ndarray) -> Returns:
        """The same returns in another frame of reference: to_from (4, 4), rigid."""
        return replace(self, points=moved(self.points, to_from), origins=moved(self.origins, to_from))

    def raised(self, heights: np.ndarray) -> Returns:
        """The same returns, each with its ray raised by a height (N,), m."""
        up = np.stack([np.zeros_like(heights), np.zeros_like(heights), heights], axis=1)
        return replace(self, points=self.points + up, origins=self.origins + up)


def moved(points: np.ndarray, to_from: np.ndarray) -> np.ndarray:
    """(N, 3) points in another frame of reference: to_from (4, 4), rigid."""
    return np.asarray(points @ to_from[:3, :3].T + to_from[:3, 3])


def returns_of(frame: Frame, source: Keyframes, sweeps: int) -> Returns:
    """The returns of a frame in the global frame, without those from the own vehicle.

    Between the times of its path a LiDAR moves along a straight line.

    Args:
        frame: with points, read with this number of earlier sweeps.
    """
    assert frame.points is not None
    points = moved(frame.points[:, :3].astype(np.float64), frame.global_from_reference)
    ages = frame.points[:, 4].astype(np.float64)
    lidars = np.zeros(len(points), np.uint8) if frame.lidar_of_point is None else frame.lidar_of_point
    origins = np.full_like(points, np.nan)
    paths = source.recording(frame.token, Reads(sweeps=sweeps, cameras=False)).lidar_paths()
    for index, (times, places) in paths.items():
        seconds, mine = 1e-6 * (times - frame.timestamp), lidars == index
        origins[mine] = np.stack([np.interp(-ages[mine], seconds, axis) for axis in places.T], axis=1)
    given, own = frame.class_of_point, frame.of_keyframe
    classes = np.full(len(points), UNKNOWN, np.int16) if given is None else np.where((given >= 0) | own, given, UNKNOWN)
    assert frame.sweep_of_point is not None
    found = Returns(points, origins, classes.astype(np.int16), ages, frame.sweep_of_point, lidars)
    return found.select(~(np.linalg.norm(points - origins, axis=1) < _OWN_VEHICLE))
