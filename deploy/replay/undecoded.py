"""Frames without their sensor data, since all that is needed came of it before. numpy only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from perception.frame import Camera, Frame, JpegFile
from perception.sensors.lidar.sweeps import Cloud


@dataclass(frozen=True)
class DrawingData:
    """What the report needs of a frame's sensors to draw it at the end of the replay.

    Attributes:
        points: (M, 5) `Frame.keyframe_points`; None: no points.
        pictures: name of a camera -> a JPEG file of its picture, of any size.
    """

    points: np.ndarray | None
    pictures: Mapping[str, bytes]


@dataclass(frozen=True)
class SensorSizes:
    """What sensor data a frame has, without the data, but for what it is drawn with.

    Attributes:
        sweeps: (N,) uint8 as `Frame.sweep_of_point`; None: no points.
        lidars: (N,) uint8 as `Frame.lidar_of_point`; None: there is a single LiDAR.
        cameras: name -> height and width of the picture, and as lists the matrices of `Camera`, and its timestamp.
        drawing: None: the report does not draw the frame later.
    """

    sweeps: np.ndarray | None
    lidars: np.ndarray | None
    cameras: Mapping[str, tuple[tuple[int, int], list[Any], list[Any], list[Any], int]]
    drawing: DrawingData | None = None

    @staticmethod
    def of(frame: Frame, drawing: DrawingData | None = None) -> SensorSizes:
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
        sweeps = None if frame.points is None else frame.sweep_of_point
        return SensorSizes(sweeps, frame.lidar_of_point, cameras, drawing)

    def cloud(self) -> Cloud:
        """The points of a frame, all 0 but for those to draw."""
        if self.sweeps is None:
            return Cloud()
        points = np.zeros((len(self.sweeps), 5), np.float32)
        if self.drawing is not None:
            points[self.sweeps == 0] = self.drawing.points
        return Cloud(points, self.sweeps, self.lidars)

    def camera(self, name: str) -> Camera:
        """A camera with a black picture, which takes no memory; its file is the one to draw."""
        size, intrinsics, mounting, pose, timestamp = self.cameras[name]
        black = np.broadcast_to(np.uint8(0), (*size, 3))
        file = None if self.drawing is None else JpegFile(self.drawing.pictures[name], black)
        return Camera(black, np.array(intrinsics), np.array(mounting), np.array(pose), timestamp, file)


UNREAD = SensorSizes(None, None, {})  # of a frame that nobody needs


# Token of a frame -> what it has, if it is the next one that need not be read; the frames are named in order of time.
Known = Callable[[str], SensorSizes | None]


class UndecodedFrame(Frame):
    """A frame with the sensor data of `SensorSizes` instead of its own: sizes and calibration only."""


def nothing_known(token: str) -> None:
    """No frame is known."""


def undecoded(frame: Frame, sizes: SensorSizes) -> UndecodedFrame:
    """A frame that was read without its sensors, with data of these sizes."""
    given = {name: getattr(frame, name) for name in Frame.__dataclass_fields__}
    cameras = {name: sizes.camera(name) for name in sizes.cameras}
    return UndecodedFrame(**given | sizes.cloud()._asdict() | {"cameras": cameras})
