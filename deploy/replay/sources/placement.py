"""Where the vehicle and its sensors are: by the transforms of a recording, or as mounted by the rig."""

from __future__ import annotations

import numpy as np

from deploy.replay.sources.messages import Transform
from deploy.replay.sources.topics import Topics
from deploy.replay.sources.transforms import Transforms
from perception.rig import Rig, RigSensor
from perception.sensors.lidar.sweeps import Motion


class Placement:
    """Poses of the vehicle, and mountings of its sensors.

    Args:
        topics: names the frames of reference, and says whether the mountings are the rig's.
    """

    def __init__(self, topics: Topics, rig: Rig) -> None:
        self._topics, self._transforms = topics, Transforms()
        self._mounts: dict[str, np.ndarray] = {}  # by sensor, where they are not those of the recording
        if topics.calibration == "rig":
            sensors: tuple[RigSensor, ...] = (*rig.lidars, *rig.cameras)
            self._mounts = {each.name: each.ego_from_sensor for each in sensors}

    def add(self, topic: str, transform: Transform) -> bool:
        """Add a transform; returns whether it was new. With odometry, other topics do not tell the vehicle's pose."""
        replaced = self._topics.odometry not in (None, topic) and transform.child == self._topics.ego_frame
        return replaced or self._transforms.add(transform, topic == self._topics.static_transforms)

    def pose(self, stamp: int) -> np.ndarray | None:
        """(4, 4) global_from_ego at a time (us); None if it is not known."""
        return self._transforms.pose(self._topics.global_frame, self._topics.ego_frame, stamp)

    def motion(self, stamp: int, point_times: np.ndarray) -> Motion | None:
        """The motion during a sweep, by all poses that were recorded meanwhile; None if it is not known.

        Args:
            stamp: us, of the sweep.
            point_times: (N,) s after it.
        """
        first = stamp + int(np.floor(1e6 * point_times.min()))
        last = max(stamp + int(np.ceil(1e6 * point_times.max())), first + 1)
        stamps = [first, *self._transforms.between(self._topics.ego_frame, first, last), last]
        poses = [self.pose(each) for each in stamps]
        known = [pose for pose in poses if pose is not None]
        if len(known) < len(poses):
            return None
        return Motion(point_times, 1e-6 * (np.array(stamps) - stamp), np.stack(known))

    def mounting(self, sensor: str, frame: str) -> np.ndarray | None:
        """(4, 4) ego_from_sensor, of the rig or by the transforms of a frame; None if it is not known."""
        if sensor in self._mounts:
            return self._mounts[sensor]
        return self._transforms.mounting(self._topics.ego_frame, frame)
