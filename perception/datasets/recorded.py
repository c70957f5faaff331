"""Frames from the sensor files of a dataroot, independent of the tables that name the files."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from perception.datasets.files import read_points
from perception.datasets.keyframes import Keyframes
from perception.datasets.nuscenes.map_expansion import MapExpansion
from perception.frame import Camera, Frame
from perception.grid import Reference
from perception.rig import Rig
from perception.sensors.lidar.sweeps import Sweep, global_from_reference, join_lidars

SweepFile = tuple[str, int, np.ndarray, np.ndarray]  # file in the dataroot, us, global_from_ego, ego_from_lidar


class RecordedKeyframes(Keyframes):
    """Reads frames and maps; subclasses give the files, poses and labels of a keyframe."""

    def __init__(self, dataroot: Path, rig: Rig) -> None:
        self.dataroot, self.rig = dataroot, rig
        self._maps: dict[str, MapExpansion | None] = {}

    @abstractmethod
    def _location(self, scene: str) -> str:
        """Name of the location of a drive, which its map has too; '' if unknown."""

    @abstractmethod
    def _keyframe(self, sample: str) -> SweepFile:
        """The reference LiDAR's file with global_from_ego of the frame. InputError for an unknown sample."""

    @abstractmethod
    def _sweeps(self, sample: str, count: int) -> Mapping[int, Iterable[SweepFile]]:
        """For each LiDAR by its index in the rig: the keyframe's sweep, then up to `count` earlier ones, latest first.
        Unless the rig has `own`, only the product of the two matrices is used."""

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
        points, lidar_of_point = None, None
        if lidar:
            files = self._sweeps(sample, sweeps)
            found = {index: self._read(each) for index, each in files.items()}
            points, lidar_of_point = join_lidars(found, timestamp, reference_from_global, self.rig.own)
        boxes = self.boxes(sample) if annotations else None
        scene = self.scene(sample)
        return Frame(
            token=sample,
            timestamp=timestamp,
            reference=grid_reference,
            global_from_reference=reference,
            global_from_ego=global_from_ego,
            cameras=self._cameras(sample) if cameras else {},
            points=points,
            conditions=self.conditions(sample),
            boxes=None if boxes is None else boxes.transformed(reference_from_global),
            scene=scene,
            location=self._location(scene),
            lidar_of_point=lidar_of_point,
        )

    def _read(self, files: Iterable[SweepFile]) -> list[Sweep]:
        """The sweeps of one LiDAR; none without the keyframe's file. Missing earlier sweeps are skipped."""
        found: list[Sweep] = []
        for i, (file, timestamp, global_from_ego, ego_from_lidar) in enumerate(files):
            try:
                points = read_points(self.dataroot / file)
            except FileNotFoundError:
                if i == 0:
                    return []
            else:
                found.append(Sweep(points, timestamp, global_from_ego, ego_from_lidar))
        return found
