"""Frames from the sensor files of a dataroot, independent of the tables that name the files."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path

import numpy as np

from perception.datasets.assembled import AssembledKeyframes
from perception.datasets.files import read_cloud
from perception.datasets.nuscenes.map_expansion import MapExpansion
from perception.rig import Rig
from perception.sensors.lidar.sweeps import Cloud, Sweep, join_lidars
from perception.taxonomy import Taxonomy

SweepFile = tuple[str, int, np.ndarray, np.ndarray]  # file in the dataroot, us, global_from_ego, ego_from_lidar


class RecordedKeyframes(AssembledKeyframes):
    """Reads sweeps and maps; subclasses give the files, poses and labels of a keyframe."""

    def __init__(self, dataroot: Path, rig: Rig, taxonomy: Taxonomy) -> None:
        self.dataroot, self.rig, self.taxonomy = dataroot, rig, taxonomy
        self._maps: dict[str, MapExpansion | None] = {}

    @abstractmethod
    def _keyframe(self, sample: str) -> SweepFile:
        """The reference LiDAR's file with global_from_ego of the frame. InputError for an unknown sample."""

    @abstractmethod
    def _sweeps(self, sample: str, count: int) -> Mapping[int, Iterable[SweepFile]]:
        """For each LiDAR by its index in the rig: the keyframe's sweep, then up to `count` earlier ones, latest first.
        Unless the rig has `own`, only the product of the two matrices is used."""

    def map(self, location: str) -> MapExpansion | None:
        """The HD map of a location; None without one."""
        if location not in self._maps:
            self._maps[location] = MapExpansion.load(self.dataroot, location, self.taxonomy.map_layers)
        return self._maps[location]

    def lidar_paths(self, sample: str, sweeps: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
        """As in the base: at the times of the sweeps; a single one has one place."""
        paths = [(np.zeros(0), np.zeros((0, 3)))] * len(self.rig.lidars)
        for index, files in self._sweeps(sample, sweeps).items():
            ordered = sorted(
                ((time, (pose @ mount)[:3, 3]) for _, time, pose, mount in files), key=lambda each: each[0]
            )
            paths[index] = np.array([time for time, _ in ordered]), np.stack([place for _, place in ordered])
        return paths

    def _pose(self, sample: str) -> tuple[int, np.ndarray, np.ndarray]:
        return self._keyframe(sample)[1:]

    @abstractmethod
    def _pictures(self, sample: str) -> Iterable[str]:
        """Files of the pictures of a keyframe, in the dataroot."""

    def _files(self, sample: str, sweeps: int, lidar: bool, cameras: bool) -> Iterator[Path]:
        """As in the base."""
        clouds = chain.from_iterable(self._sweeps(sample, sweeps).values()) if lidar else ()
        for file in chain((file for file, *_ in clouds), self._pictures(sample) if cameras else ()):
            yield self.dataroot / file

    def _classes(self, file: str, count: int) -> np.ndarray | None:
        """(count,) int16 annotated class of the points in the file of a keyframe; None if they are not annotated."""
        return None

    def _cloud(self, sample: str, sweeps: int, reference_from_global: np.ndarray, classified: bool) -> Cloud:
        """As in the base; only points of the keyframe have classes."""
        found = {index: self._read(files, classified) for index, files in self._sweeps(sample, sweeps).items()}
        return join_lidars(found, self._pose(sample)[0], reference_from_global, self.rig.own)

    def _read(self, files: Iterable[SweepFile], classified: bool) -> list[Sweep]:
        """The sweeps of one LiDAR; none without the keyframe's file. Missing earlier sweeps are skipped."""
        found: list[Sweep] = []
        for i, (file, timestamp, global_from_ego, ego_from_lidar) in enumerate(files):
            try:
                points, times = read_cloud(self.dataroot / file, timestamp)
            except FileNotFoundError:
                if i == 0:
                    return []
            else:
                classes = self._classes(file, len(points)) if classified and i == 0 else None
                found.append(Sweep(points, timestamp, global_from_ego, ego_from_lidar, times=times, classes=classes))
        return found
