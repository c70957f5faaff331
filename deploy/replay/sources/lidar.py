"""The latest sweeps of a recorded LiDAR, from which the points of each frame are gathered."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deploy.replay.sources.counts import Counts
from deploy.replay.sources.messages import Cloud, CorruptMessage
from deploy.replay.sources.points import point_times
from deploy.replay.sources.topics import LidarTopic
from deploy.replay.sources.transforms import Placement
from perception.sensors.lidar.sweeps import Motion, Sweep

_EXTRA_SWEEPS = 24  # kept beyond those of a frame, because more arrive while it waits
_OLDEST = 1_000_000  # us before the frame, where no keyframe lists its sweeps


class LidarSweeps:
    """A bounded number of sweeps, in order of arrival, each with the vehicle's pose once that is known.

    Args:
        sweeps: number of earlier sweeps that belong to a frame.
    """

    def __init__(self, topic: LidarTopic, sweeps: int, placement: Placement, counts: Counts) -> None:
        self.topic, self._given = topic.topic, topic
        self._placement, self._counts = placement, counts
        self.frame_ids = [] if topic.frame is None else [topic.frame]  # of the sensor, in order of preference
        self._sweeps = sweeps
        self._clouds: dict[int, np.ndarray] = {}  # points (N, 5) as in `Cloud`, by stamp
        self._times: dict[int, np.ndarray] = {}  # (N,) s of the points, by stamp, where they are known
        self._motions: dict[int, Motion] = {}  # by stamp, of sweeps with times that were used
        self._poses: dict[int, np.ndarray] = {}  # (4, 4) global from ego, by stamp

    def add(self, cloud: Cloud) -> None:
        if cloud.frame not in self.frame_ids:
            self.frame_ids = [*self.frame_ids[:1], cloud.frame]
        self._clouds[cloud.stamp] = cloud.points
        try:
            times = point_times(cloud, self._given)
        except CorruptMessage:
            self._counts.add_problem("uncompensated", self.topic)
        else:
            if times is not None:
                self._times[cloud.stamp] = times
        if len(self._clouds) > self._sweeps + _EXTRA_SWEEPS:
            self._drop(next(iter(self._clouds)))

    def has(self, stamp: int) -> bool:
        """Whether there is a sweep with this stamp."""
        return stamp in self._clouds

    def look_up_poses(self) -> None:
        """Look up poses that are not known yet, before old transforms are dropped."""
        for stamp in self._clouds.keys() - self._poses.keys():
            pose = self._placement.pose(stamp)
            if pose is not None:
                self._poses[stamp] = pose

    def closest(self, stamp: int, tolerance: int) -> int | None:
        """The stamp of the sweep closest to this stamp, within a tolerance (us); None if there is none with a pose."""
        near = [(abs(each - stamp), each) for each in self._poses if abs(each - stamp) <= tolerance]
        return min(near)[1] if near else None

    def sweeps(self, stamp: int, earlier: Sequence[int] | None, ego_from_lidar: np.ndarray) -> list[Sweep]:
        """The sweep with this stamp, then earlier ones; none without a sweep of exactly this stamp.

        A sweep whose pose is not known is counted and dropped; one whose points have times, but the vehicle no poses
        then, is counted and used as of one time.

        Args:
            earlier: stamps of the earlier sweeps; None: those within the last second, latest first.
        """
        if stamp not in self._poses:
            return []
        if earlier is None:
            earlier = sorted((s for s in self._clouds if stamp - _OLDEST <= s < stamp), reverse=True)
        sweeps = []
        for each in [stamp, *earlier[: self._sweeps]]:
            if each in self._poses:
                sweeps.append(Sweep(self._clouds[each], each, self._poses[each], ego_from_lidar, self._motion(each)))
            elif each in self._clouds:
                self._counts.add_problem("unposed", self.topic)
                self._drop(each)
        return sweeps

    def _motion(self, stamp: int) -> Motion | None:
        """The vehicle's motion during a sweep; None if its points have no times, or the poses are not known."""
        if stamp in self._times and stamp not in self._motions:
            motion = self._placement.motion(stamp, self._times[stamp])
            if motion is None:
                self._counts.add_problem("uncompensated", self.topic)
                del self._times[stamp]
            else:
                self._motions[stamp] = motion
        return self._motions.get(stamp)

    def _drop(self, stamp: int) -> None:
        del self._clouds[stamp]
        for known in (self._poses, self._times, self._motions):
            known.pop(stamp, None)
