"""Frames without their sensor data, since all that is needed came of it before. numpy only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from perception.frame import Camera, Frame, JpegFile, of_keyframe

_EARLIER = 1.0  # s, dt of all points that are not of the keyframe


@dataclass(frozen=True)
class DrawingData:
    """What the report needs of a frame's sensors to draw it at the end of the replay.

    Attributes:
        points: (M, 5) the `keyframe_part` of the points; None: no points.
        pictures: name of a camera -> a JPEG file of its picture, of any size.
    """

    points: np.ndarray | None
    pictures: Mapping[str, bytes]


@dataclass(frozen=True)
class SensorSizes:
    """What sensor data a frame has, without the data, but for what it is drawn with.

    Attributes:
        points: number of points, and the first and the end of those of the keyframe; None: no points.
        lidars: (N,) uint8 as `Frame.lidar_of_point`; None: there is a single LiDAR.
        cameras: name -> height and width of the picture, and as lists the matrices of `Camera`, and its timestamp.
        drawing: None: the report does not draw the frame later.
    """

    points: tuple[int, int, int] | None
    lidars: np.ndarray | None
    cameras: Mapping[str, tuple[tuple[int, int], list[Any], list[Any], list[Any], int]]
    drawing: DrawingData | None = None

    @staticmethod
    def of(frame: Frame, drawing: DrawingData | None = None) -> SensorSizes:
        points = None
        if frame.points is not None:
            part = keyframe_part(frame.points)
            points = len(frame.points), part.start, part.stop
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
        return SensorSizes(points, frame.lidar_of_point, cameras, drawing)

    def clouds(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        """`points` and `lidar_of_point` of a frame; all coordinates and intensities are 0, but for those to draw."""
        if self.points is None:
            return None, None
        count, first, end = self.points
        points = np.zeros((count, 5), np.float32)
        points[:first, 4] = points[end:, 4] = _EARLIER
        if self.drawing is not None:
            points[first:end] = self.drawing.points
        return points, self.lidars

    def camera(self, name: str) -> Camera:
        """A camera with a black picture, which takes no memory; its file is the one to draw."""
        size, intrinsics, mounting, pose, timestamp = self.cameras[name]
        black = np.broadcast_to(np.uint8(0), (*size, 3))
        file = None if self.drawing is None else JpegFile(self.drawing.pictures[name], black)
        return Camera(black, np.array(intrinsics), np.array(mounting), np.array(pose), timestamp, file)


UNREAD = SensorSizes(None, None, {})  # of a frame that nobody needs


def keyframe_part(points: np.ndarray) -> slice:
    """Where the points (N, 5) of the keyframe are: all in one place, since sweeps are in the order of their times."""
    keyframe = np.flatnonzero(of_keyframe(points))
    return slice(int(keyframe[0]), int(keyframe[-1]) + 1) if len(keyframe) else slice(0, 0)


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
