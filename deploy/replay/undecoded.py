"""Frames whose sensor data is not read again, because a journal has all that came of it. numpy only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from perception.frame import Camera, Frame, of_keyframe

_EARLIER = 1.0  # s, dt of all points that are not of the keyframe


@dataclass(frozen=True)
class SensorSizes:
    """What sensor data a frame has, without the data.

    Attributes:
        points: number of points, and the first and the end of those of the keyframe; None: no points.
        lidars: (N,) uint8 as `Frame.lidar_of_point`; None: there is a single LiDAR.
        cameras: name -> height and width of the picture, and as lists the matrices of `Camera`, and its timestamp.
    """

    points: tuple[int, int, int] | None
    lidars: np.ndarray | None
    cameras: Mapping[str, tuple[tuple[int, int], list[Any], list[Any], list[Any], int]]

    @staticmethod
    def of(frame: Frame) -> SensorSizes:
        points = None
        if frame.points is not None:
            # The sweeps are in ascending order of their times.
            keyframe = np.flatnonzero(of_keyframe(frame.points))
            first, end = (int(keyframe[0]), int(keyframe[-1]) + 1) if len(keyframe) else (0, 0)
            points = len(frame.points), first, end
        cameras = {
            name: (
                (camera.image.shape[0], camera.image.shape[1]),
                camera.intrinsics.tolist(),
                camera.ego_from_camera.tolist(),
                camera.global_from_ego.tolist(),
                int(camera.timestamp),
            )
            for name, camera in frame.cameras.items()
        }
        return SensorSizes(points, frame.lidar_of_point, cameras)

    def clouds(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        """`points` and `lidar_of_point` of a frame; all coordinates and intensities are 0."""
        if self.points is None:
            return None, None
        count, first, end = self.points
        points = np.zeros((count, 5), np.float32)
        points[:first, 4] = points[end:, 4] = _EARLIER
        return points, self.lidars

    def camera(self, name: str) -> Camera:
        """A camera with a black picture, which takes no memory."""
        size, intrinsics, mounting, pose, timestamp = self.cameras[name]
        black = np.broadcast_to(np.uint8(0), (*size, 3))
        return Camera(black, np.array(intrinsics), np.array(mounting), np.array(pose), timestamp)


# Token of a frame -> what it has, if it is the next one that need not be read; the frames are named in order of time.
Known = Callable[[str], SensorSizes | None]


class UndecodedFrame(Frame):
    """A frame with the sensor data of `SensorSizes` instead of its own: sizes and calibration only."""


def nothing_known(token: str) -> None:
    """No frame is known."""


def undecoded(frame: Frame, sizes: SensorSizes) -> UndecodedFrame:
    """A frame that was read without its sensors, with data of these sizes."""
    points, lidars = sizes.clouds()
    given = {name: getattr(frame, name) for name in Frame.__dataclass_fields__}
    cameras = {name: sizes.camera(name) for name in sizes.cameras}
    return UndecodedFrame(**given | {"points": points, "lidar_of_point": lidars, "cameras": cameras})
