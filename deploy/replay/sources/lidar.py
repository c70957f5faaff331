"""The latest sweeps of a recording's LiDAR, to gather those of a frame from."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from deploy.replay.sources.counts import Counts
from deploy.replay.sources.messages import Cloud, Keyframe
from deploy.replay.sources.topics import LidarTopic
from perception.sensors.lidar.sweeps import Sweep, accumulate_sweeps

_MORE = 24  # sweeps kept beyond those of a frame: what comes while a frame waits
_OLDEST = 1_000_000  # us before the frame, where no keyframe says which sweeps are its own


class LidarSweeps:
    """A bounded number of sweeps, in the order they came, each with the vehicle's pose once that is known.

    Args:
        sweeps: how many before a frame's own belong to it.
    """

    def __init__(self, topic: LidarTopic, sweeps: int) -> None:
        self.topic = topic.topic
        self.frames = [] if topic.frame is None else [topic.frame]  # names of its frame of reference, best first
        self._sweeps = sweeps
        self._clouds: dict[int, Cloud] = {}  # by stamp
        self._poses: dict[int, np.ndarray] = {}  # (4, 4) global from ego, by stamp

    def add(self, cloud: Cloud) -> None:
        if cloud.frame not in self.frames:
            self.frames = [*self.frames[:1], cloud.frame]
        self._clouds[cloud.stamp] = cloud
        if len(self._clouds) > self._sweeps + _MORE:
            self._drop(next(iter(self._clouds)))

    def has(self, stamp: int) -> bool:
        """Whether the sweep of this stamp is there."""
        return stamp in self._clouds

    def place(self, pose_at: Callable[[int], np.ndarray | None]) -> None:
        """Look up the poses that are not known yet, before the transforms forget them."""
        for stamp in self._clouds.keys() - self._poses.keys():
            pose = pose_at(stamp)
            if pose is not None:
                self._poses[stamp] = pose

    def points(
        self,
        stamp: int,
        keyframe: Keyframe | None,
        ego_from_lidar: np.ndarray,
        reference_from_global: np.ndarray,
        counts: Counts,
    ) -> np.ndarray | None:
        """(N, 5) of the sweep of this stamp and those before it, latest first, in the reference frame.

        None without the sweep of this very stamp. A sweep whose pose is not known is dropped and counted.
        """
        if stamp not in self._poses:
            return None
        if keyframe is None:
            before = sorted((s for s in self._clouds if stamp - _OLDEST <= s < stamp), reverse=True)
        else:
            before = list(keyframe.sweeps)
        found = []
        for each in [stamp, *before[: self._sweeps]]:
            if each in self._poses:
                found.append(Sweep(self._clouds[each].points, each, self._poses[each], ego_from_lidar))
            elif each in self._clouds:
                counts.wrong("unposed", self.topic)
                self._drop(each)
        return accumulate_sweeps(found, stamp, reference_from_global)

    def _drop(self, stamp: int) -> None:
        del self._clouds[stamp]
        self._poses.pop(stamp, None)
