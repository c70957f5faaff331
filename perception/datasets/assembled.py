"""Frames from what a data set reads of each sensor."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from perception.datasets.files import stamp
from perception.datasets.keyframes import Keyframes, Reads
from perception.frame import Camera, Frame
from perception.sensors.lidar.sweeps import Cloud, global_from_reference


class AssembledKeyframes(Keyframes):
    """Assembles frames; subclasses read poses, points, pictures and boxes."""

    _opened: Sequence[tuple[str, int, int]] = ()  # stamps of the files that were read when the data set was opened

    @abstractmethod
    def _pose(self, sample: str) -> tuple[int, np.ndarray, np.ndarray]:
        """The LiDAR's time (us), global_from_ego (4, 4) then, and ego_from_lidar (4, 4); InputError without sample."""

    @abstractmethod
    def _cloud(self, sample: str, sweeps: int, reference_from_global: np.ndarray, classified: bool) -> Cloud:
        """Points of the keyframe and earlier sweeps; none without a file. classified: with their annotated classes."""

    @abstractmethod
    def _cameras(self, sample: str, least_width: int) -> dict[str, Camera]:
        """The cameras whose files exist, with pictures of at least this width as of `frame`."""

    @abstractmethod
    def _files(self, sample: str, sweeps: int, lidar: bool, cameras: bool) -> Iterable[Path]:
        """Files that a frame is read from, there or not, but for those that were read when the data set was opened."""

    def stamps(self, sample: str, reads: Reads) -> Sequence[tuple[str, int, int]]:
        """Of all that a frame is read from, as in `Keyframes`."""
        return [*self._opened, *map(stamp, self._files(sample, reads.sweeps, reads.lidar, reads.cameras))]

    def timestamp(self, sample: str) -> int:
        """The LiDAR's time of a keyframe, us."""
        return self._pose(sample)[0]

    def _location(self, scene: str) -> str:
        """Name of the location of a drive, which its map has too; '' if unknown."""
        return ""

    def _position(self, sample: str, global_from_ego: np.ndarray) -> tuple[float, float] | None:
        """Latitude and longitude (degrees, WGS 84) of the vehicle at its pose in a keyframe; None if unknown."""
        return None

    def frame(self, sample: str, reads: Reads = Reads()) -> Frame:  # noqa: B008 - it is immutable
        """The sensor data of a keyframe, as in `Keyframes`."""
        timestamp, global_from_ego, ego_from_lidar = self._pose(sample)
        reference = global_from_reference(global_from_ego, ego_from_lidar, reads.reference)
        reference_from_global = np.linalg.inv(reference)
        classified = reads.annotations and bool(self.taxonomy.point_classes)
        boxes = self.boxes(sample) if reads.annotations else None
        cloud = self._cloud(sample, reads.sweeps, reference_from_global, classified) if reads.lidar else Cloud()
        scene = self.scene(sample)
        frame = Frame(
            token=sample,
            timestamp=timestamp,
            reference=reads.reference,
            global_from_reference=reference,
            global_from_ego=global_from_ego,
            cameras=self._cameras(sample, reads.least_width) if reads.cameras else {},
            conditions=self.conditions(sample),
            boxes=None if boxes is None else boxes.transformed(reference_from_global),
            scene=scene,
            location=self._location(scene),
            position=self._position(sample, global_from_ego),
            **cloud._asdict(),
        )
        return frame if reads.change is None else reads.change(frame)
