"""Frames from what a data set reads of each sensor."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from perception.datasets.files import stamp
from perception.datasets.keyframes import Keyframes
from perception.frame import Camera, Frame
from perception.grid import Reference
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

    def stamps(
        self, sample: str, sweeps: int = 0, *, lidar: bool = True, cameras: bool = True
    ) -> Sequence[tuple[str, int, int]]:
        """Of all that a frame is read from, as in `Keyframes`."""
        return [*self._opened, *map(stamp, self._files(sample, sweeps, lidar, cameras))]

    def timestamp(self, sample: str) -> int:
        """The LiDAR's time of a keyframe, us."""
        return self._pose(sample)[0]

    def _location(self, scene: str) -> str:
        """Name of the location of a drive, which its map has too; '' if unknown."""
        return ""

    def _position(self, sample: str, global_from_ego: np.ndarray) -> tuple[float, float] | None:
        """Latitude and longitude (degrees, WGS 84) of the vehicle at its pose in a keyframe; None if unknown."""
        return None

    def frame(
        self,
        sample: str,
        grid_reference: Reference = "ego",
        sweeps: int = 0,
        annotations: bool = True,
        *,
        lidar: bool = True,
        cameras: bool = True,
        least_width: int = 0,
    ) -> Frame:
        """The sensor data of a keyframe; sensors without a file are missing in the frame.

        Args:
            sample: token of the keyframe.
            grid_reference: the frame of reference of points and boxes, `ego` or `lidar`, at the LiDAR's time.
            sweeps: number of earlier LiDAR sweeps to add, compensated for the vehicle's motion.
            annotations: whether to read the boxes, and the classes of points if the taxonomy has some.
            lidar: whether to read the LiDAR.
            cameras: whether to read the images.
            least_width: pixels. Images may be reduced in size while they stay at least as wide; 0: as recorded.

        Raises:
            InputError: a damaged file, or an unknown sample.
        """
        timestamp, global_from_ego, ego_from_lidar = self._pose(sample)
        reference = global_from_reference(global_from_ego, ego_from_lidar, grid_reference)
        reference_from_global = np.linalg.inv(reference)
        classified = annotations and bool(self.taxonomy.point_classes)
        boxes = self.boxes(sample) if annotations else None
        cloud = self._cloud(sample, sweeps, reference_from_global, classified) if lidar else Cloud()
        scene = self.scene(sample)
        return Frame(
            token=sample,
            timestamp=timestamp,
            reference=grid_reference,
            global_from_reference=reference,
            global_from_ego=global_from_ego,
            cameras=self._cameras(sample, least_width) if cameras else {},
            conditions=self.conditions(sample),
            boxes=None if boxes is None else boxes.transformed(reference_from_global),
            scene=scene,
            location=self._location(scene),
            position=self._position(sample, global_from_ego),
            **cloud._asdict(),
        )
