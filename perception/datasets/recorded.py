"""Frames from the sensor files of a dataroot, independent of the tables that name the files."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from perception.datasets.files import read_points
from perception.datasets.keyframes import Keyframes
from perception.datasets.nuscenes.map_expansion import MapExpansion
from perception.frame import Camera, Frame
from perception.grid import Reference
from perception.sensors.lidar.sweeps import Sweep, accumulate_sweeps, global_from_reference

SweepFile = tuple[str, int, np.ndarray, np.ndarray]  # file in the dataroot, us, global_from_ego, ego_from_lidar


class RecordedKeyframes(Keyframes):
    """Reads frames and maps; subclasses give the files, poses and labels of a keyframe."""

    def __init__(self, dataroot: Path) -> None:
        self.dataroot = dataroot
        self._maps: dict[str, MapExpansion | None] = {}

    @abstractmethod
    def _location(self, scene: str) -> str:
        """Name of the location of a drive, which its map has too; '' if unknown."""

    def _position(self, scene: str, global_from_ego: np.ndarray) -> tuple[float, float] | None:
        """Latitude and longitude (degrees, WGS 84) of the vehicle at a pose in a drive; None if unknown."""
        return None

    @abstractmethod
    def _keyframe(self, sample: str) -> SweepFile:
        """The LiDAR's file with global_from_ego of the frame. InputError for an unknown sample."""

    @abstractmethod
    def _sweeps(self, sample: str, count: int) -> Iterable[SweepFile]:
        """The keyframe's sweep, then up to `count` earlier ones, latest first; only the product of the two matrices
        is used."""

    @abstractmethod
    def _cameras(self, sample: str) -> dict[str, Camera]:
        """The cameras whose files exist."""

    def map(self, location: str) -> MapExpansion | None:
        """The HD map of a location; None without one."""
        if location not in self._maps:
            self._maps[location] = MapExpansion.load(self.dataroot, location)
        return self._maps[location]

    def frame(
        self,
        sample: str,
        grid_reference: Reference = "ego",
        sweeps: int = 0,
        annotations: bool = True,
        *,
        lidar: bool = True,
        cameras: bool = True,
    ) -> Frame:
        """The sensor data of a keyframe; sensors without a file are missing in the frame.

        Args:
            sample: token of the keyframe.
            grid_reference: the frame of reference of points and boxes, `ego` or `lidar`, at the LiDAR's time.
            sweeps: number of earlier LiDAR sweeps to add, compensated for the vehicle's motion.
            annotations: whether to read the boxes.
            lidar: whether to read the LiDAR.
            cameras: whether to read the images.

        Raises:
            InputError: a damaged file, or an unknown sample.
        """
        _, timestamp, global_from_ego, ego_from_lidar = self._keyframe(sample)
        reference = global_from_reference(global_from_ego, ego_from_lidar, grid_reference)
        reference_from_global = np.linalg.inv(reference)
        boxes = self.boxes(sample) if annotations else None
        scene = self.scene(sample)
        return Frame(
            token=sample,
            timestamp=timestamp,
            reference=grid_reference,
            global_from_reference=reference,
            global_from_ego=global_from_ego,
            cameras=self._cameras(sample) if cameras else {},
            points=self._points(sample, sweeps, reference_from_global) if lidar else None,
            conditions=self.conditions(sample),
            boxes=None if boxes is None else boxes.transformed(reference_from_global),
            scene=scene,
            location=self._location(scene),
            position=self._position(scene, global_from_ego),
        )

    def _points(self, sample: str, sweeps: int, reference_from_global: np.ndarray) -> np.ndarray | None:
        """(N, 5) of the keyframe, then of earlier sweeps, latest first; None without the keyframe's file.

        Missing earlier sweeps are skipped.
        """
        found: list[Sweep] = []
        for i, (file, timestamp, global_from_ego, ego_from_lidar) in enumerate(self._sweeps(sample, sweeps)):
            try:
                points = read_points(self.dataroot / file)
            except FileNotFoundError:
                if i == 0:
                    return None
            else:
                found.append(Sweep(points, timestamp, global_from_ego, ego_from_lidar))
        return accumulate_sweeps(found, found[0].timestamp, reference_from_global)
