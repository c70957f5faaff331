"""Frames from the sensor files of a dataroot, independent of the tables that name the files."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from perception.datasets.assembled import AssembledKeyframes
from perception.datasets.files import read_points
from perception.datasets.nuscenes.map_expansion import MapExpansion
from perception.sensors.lidar.sweeps import Sweep, accumulate_sweeps

SweepFile = tuple[str, int, np.ndarray, np.ndarray]  # file in the dataroot, us, global_from_ego, ego_from_lidar


class RecordedKeyframes(AssembledKeyframes):
    """Reads sweeps and maps; subclasses give the files, poses and labels of a keyframe."""

    def __init__(self, dataroot: Path) -> None:
        self.dataroot = dataroot
        self._maps: dict[str, MapExpansion | None] = {}

    @abstractmethod
    def _keyframe(self, sample: str) -> SweepFile:
        """The LiDAR's file with global_from_ego of the frame. InputError for an unknown sample."""

    @abstractmethod
    def _sweeps(self, sample: str, count: int) -> Iterable[SweepFile]:
        """The keyframe's sweep, then up to `count` earlier ones, latest first; only the product of the two matrices
        is used."""

    def map(self, location: str) -> MapExpansion | None:
        """The HD map of a location; None without one."""
        if location not in self._maps:
            self._maps[location] = MapExpansion.load(self.dataroot, location)
        return self._maps[location]

    def _pose(self, sample: str) -> tuple[int, np.ndarray, np.ndarray]:
        return self._keyframe(sample)[1:]

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
