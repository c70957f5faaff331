"""Real sweeps of KITTI, nuScenes and PandaSet, read with the right columns and with the columns of another data set."""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from repository import recorded

from perception.datasets.files import read_cloud
from perception.datasets.keyframes import Reads, Recording, SweepFile, assemble
from perception.datasets.kitti import read_sweep
from perception.datasets.sources import open_source
from perception.datasets.sweeps import Sweep, join_lidars
from perception.errors import InputError
from perception.frame import Frame
from perception.rig import LidarLimits, Sensors
from perception.scene.health.features import sweep_features
from perception.scene.health.monitor import HealthMonitor

LIDAR = Reads("lidar", annotations=False, cameras=False)
POSE = np.eye(4)


def kitti() -> list[Path]:
    files = sorted((recorded("kitti_raw", "poses.txt") / "velodyne").glob("*.bin"))
    assert len(files) == 24
    return files


def nuscenes() -> list[Path]:
    files = sorted(recorded("nuscenes", "samples/LIDAR_TOP").glob("s*/LIDAR_TOP/*.bin"))
    assert len(files) == 9
    return files


def read_as(columns: int, path: Path, _timestamp: int = 0) -> tuple[np.ndarray, None]:
    """Read a file as points of so many columns; keep x, y, z and intensity."""
    numbers = np.fromfile(path, np.float32)
    points = numbers[: len(numbers) // columns * columns].reshape(-1, columns)
    return np.column_stack([points[:, :4], np.zeros(len(points), np.float32)]), None


def frame_of(points: np.ndarray) -> Frame:
    cloud = join_lidars({0: [Sweep(points, 0, POSE, POSE)]}, 0, POSE, None)
    where = {"global_from_reference": POSE, "global_from_ego": POSE}
    return Frame(token="a", timestamp=0, reference="lidar", cameras={}, **where, **cloud._asdict())


def statuses(frame: Frame) -> set[str]:
    return {each.status for each in HealthMonitor(Sensors(("lidar",))).update(frame)["lidar"].findings}


def recording(sweeps: list[SweepFile]) -> Recording:
    return Recording("a", "drive", 0, POSE, POSE, {0: sweeps}, {})


@pytest.mark.parametrize(("files", "columns"), [(kitti, (5, 6, 7)), (nuscenes, (4, 6, 7))])
def test_sweeps_read_with_other_columns_are_refused(files: Mapping, columns: tuple[int, ...]) -> None:
    for path in files():
        for each in columns:
            with pytest.raises(InputError, match=path.name):
                assemble(recording([SweepFile(path, 0, POSE, POSE, read=partial(read_as, each))]), LIDAR)
            assert "corrupt" in statuses(frame_of(read_as(each, path)[0]))


@pytest.mark.parametrize(("files", "read"), [(kitti, read_cloud), (nuscenes, read_sweep)])
def test_the_readers_of_other_files_refuse_them(files: Mapping, read: object) -> None:
    """The sizes of some allow it; an earlier sweep of the right kind changes nothing."""
    for path in files():
        with pytest.raises(InputError, match=path.name):
            assemble(recording([SweepFile(path, 0, POSE, POSE, read=read)]), LIDAR)


def frames() -> Iterator[Frame]:
    for path in kitti():
        yield assemble(recording([SweepFile(path, 0, POSE, POSE, read=read_sweep)]), LIDAR)
    for path in nuscenes():
        yield assemble(recording([SweepFile(path, 0, POSE, POSE)]), LIDAR)
    source = open_source(recorded("pandaset", "002"), None)
    for token in source.samples():
        yield source.frame(token, LIDAR)


@pytest.mark.slow("reads 65 real sweeps")
def test_no_sweep_as_published_is_suspected() -> None:
    count = 0
    for count, frame in enumerate(frames(), 1):  # noqa: B007
        assert sweep_features(frame, LidarLimits()).impossible == 0
        assert "corrupt" not in statuses(frame)
    assert count == 24 + 9 + 32
