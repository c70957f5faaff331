"""What a training reads of each keyframe, and the frames that it keeps in memory."""

from __future__ import annotations

from typing import NamedTuple

from perception.config import Config
from perception.datasets.keyframes import Keyframes
from perception.frame import Frame
from perception.grid import Reference
from perception.sensors.inputs import InputSpec


class Reads(NamedTuple):
    """Arguments of `Keyframes.frame`."""

    grid_reference: Reference
    sweeps: int
    lidar: bool
    cameras: bool
    least_width: int

    @staticmethod
    def of(config: Config, depth: bool = False) -> Reads:
        """What the model of a configuration needs, and labels of the cameras' depth if they are asked for."""
        spec = InputSpec.of(config)
        width = 0 if spec.camera is None else spec.camera.image.width
        return Reads(
            spec.grid.reference,
            spec.sweeps,
            lidar=spec.lidar is not None or depth,
            cameras=spec.camera is not None,
            least_width=width if config.data.reduced_pictures else 0,
        )

    def frame(self, tables: Keyframes, token: str) -> Frame:
        return tables.frame(token, **self._asdict())


class FramesInMemory:
    """The frames of a data set, of which the first ones stay decoded: with random access no eviction policy is better.

    Args:
        size: bytes of all that stay.
    """

    def __init__(self, tables: Keyframes, reads: Reads, size: int) -> None:
        self._tables, self._reads, self._free = tables, reads, size
        self._frames: dict[str, Frame] = {}

    def frame(self, token: str) -> Frame:
        """The frame of a keyframe."""
        if token in self._frames:
            return self._frames[token]
        frame = self._reads.frame(self._tables, token)
        size = sum(camera.image.nbytes for camera in frame.cameras.values())
        size += 0 if frame.points is None else frame.points.nbytes
        if size <= self._free:
            self._free -= size
            self._frames[token] = frame
        return frame
