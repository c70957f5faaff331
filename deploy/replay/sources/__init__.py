"""Recorded drives to replay: scenes of a nuScenes dataroot, MCAP files and rosbag2 recordings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from deploy.replay.sources.counts import Counts
from deploy.replay.sources.nuscenes import NuScenesDrive
from deploy.replay.sources.recorded import RecordedDrive
from deploy.replay.sources.topics import Topics
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.datasets.nuscenes.tables import versions
from perception.errors import InputError
from perception.frame import Frame
from perception.section import load_section
from perception.sensors.inputs import InputSpec


class Drive(Protocol):
    """A drive: its frames in order of time, how many to expect, and what was wrong with it when last read."""

    counts: Counts

    @property
    def tables(self) -> NuScenesTables | None:
        """What knows what was there; a recording has none."""

    @property
    def seconds(self) -> float:
        """From the first frame to the last, about; 0 where it does not say."""
        ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Frame]: ...


def is_recording(path: Path) -> bool:
    """Whether it is an MCAP file or a rosbag2, not a nuScenes dataroot."""
    if not path.is_dir():
        return path.suffix in (".mcap", ".db3")
    files = ((path / "metadata.yaml").exists(), any(path.glob("*.db3")), any(path.glob("*.mcap")))
    return any(files) and not versions(path)


def open_drives(
    path: Path, version: str | None, scenes: Sequence[str], spec: InputSpec, topics: Path | None
) -> Sequence[Drive]:
    """The drives at a path, in the order to replay them.

    Args:
        path: a nuScenes dataroot, a .mcap or .db3 file, or a rosbag2's folder.
        version: of the tables of a dataroot; a recording has none.
        scenes: of a dataroot: names, or keyframes such as `scene-0103:0-4`; empty for every scene.
        topics: a YAML file that says which topics of a recording are which sensor.

    Raises:
        InputError: there is no drive, no such scene, or an option that this kind of drive does not have.
    """
    if is_recording(path):
        if version is not None or scenes:
            raise InputError(f"{path}: a recording is one drive; --version and --scenes choose within a dataroot")
        return [
            RecordedDrive(path, Topics() if topics is None else load_section(Topics, topics, "the map of topics"), spec)
        ]
    if topics is not None:
        raise InputError(f"{path}: a dataroot has no topics; --topics goes with a .mcap file or a rosbag2")
    if version is None:
        raise InputError(f"{path}: neither a recording (.mcap, .db3, rosbag2) nor a dataroot with a --version")
    tables = NuScenesTables(path, version)
    return [NuScenesDrive(tables, scene, spec) for scene in scenes or tables.scenes()]
