"""Motion of a drive: poses between recorded ones, and velocities of tracked objects. numpy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from perception.rotations import rigid


@dataclass(frozen=True, eq=False)
class Poses:
    """Two or more poses of a sensor or vehicle in order of time, less than a few degrees apart.

    Raises:
        ValueError: times and poses are not finite, not as many as each other, or not in order.
    """

    times: np.ndarray  # (N,) s
    values: np.ndarray  # (N, 7) x y z (m), quaternion w x y z

    def __post_init__(self) -> None:
        n = len(self.times)
        if n < 2 or self.times.shape != (n,) or self.values.shape != (n, 7) or not np.isfinite(self.values).all():
            raise ValueError(f"{n} times and poses of shape {self.values.shape}")
        if not (np.diff(self.times) > 0).all():
            raise ValueError("the times do not increase")

    def at(self, time: float) -> np.ndarray:
        """(4, 4) parent_from_child at a time (s), linear between two poses, and beyond the first and the last."""
        i = int(np.clip(np.searchsorted(self.times, time, side="right") - 1, 0, len(self.times) - 2))
        share = (time - self.times[i]) / (self.times[i + 1] - self.times[i])
        before, after = self.values[i], self.values[i + 1].copy()
        after[3:] *= np.copysign(1, before[3:] @ after[3:])  # a quaternion and its negative are one rotation
        pose = before + share * (after - before)
        return rigid(pose[:3], pose[3:])


def track_velocities(frames: Mapping[float, Mapping[str, np.ndarray]], tracks: Sequence[str]) -> np.ndarray:
    """(N, 2) m/s of N tracks, from the first to the last frame that has them; NaN for those in fewer than two.

    Args:
        frames: time (s), in order -> track -> x y (m) in one frame of reference.
    """
    velocities = np.full((len(tracks), 2), np.nan)
    for n, track in enumerate(tracks):
        seen = [(time, places[track]) for time, places in frames.items() if track in places]
        if len(seen) > 1:
            velocities[n] = (seen[-1][1] - seen[0][1]) / (seen[-1][0] - seen[0][0])
    return velocities
