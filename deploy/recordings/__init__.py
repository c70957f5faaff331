"""Recorded drives to replay: scenes of a data set, MCAP files and rosbag2 recordings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from deploy.recordings.choice import FrameChoice
from deploy.recordings.counts import Counts
from deploy.recordings.drives import DatasetDrive, RecordedDrive
from deploy.recordings.topics import load_topics
from perception.datasets.keyframes import Keyframes
from perception.datasets.nuscenes.tables import versions
from perception.datasets.sources import format_and_path, open_source
from perception.errors import InputError
from perception.frame import Frame
from perception.scene.signals import SignalConfig
from perception.sensors.inputs import InputSpec
from perception.taxonomy import Taxonomy


class Drive(Protocol):
    """A recorded drive: its frames in order of time, and counts of what was wrong with them in the latest reading."""

    name: str  # of the scene or the recording
    counts: Counts

    @property
    def tables(self) -> Keyframes | None:
        """The annotations; None for a recording."""

    @property
    def seconds(self) -> float:
        """About the time from the first frame to the last; 0 if not known."""
        ...

    def __len__(self) -> int: ...

    def frames(self, choice: FrameChoice | None = None) -> Iterator[Frame]:
        """The chosen frames; None: all. Of the others no picture is decoded and no sweep is joined."""
        ...


def is_recording(path: Path) -> bool:
    """Whether the path is an MCAP file or a rosbag2 rather than a nuScenes dataroot."""
    if not path.is_dir():
        return path.suffix in (".mcap", ".db3")
    files = ((path / "metadata.yaml").exists(), any(path.glob("*.db3")), any(path.glob("*.mcap")))
    return any(files) and not versions(path)


def open_drives(
    path: Path,
    version: str | None,
    scenes: Sequence[str],
    spec: InputSpec,
    topics: Path | None,
    taxonomy: Taxonomy | None = None,
    signals: Mapping[str, SignalConfig] | None = None,
    between: float | None = None,
) -> Sequence[Drive]:
    """Open the drives at a path, in the order in which they are replayed.

    Args:
        path: a dataroot of nuScenes or PandaSet, FORMAT=PATH, a .mcap or .db3 file, or a rosbag2's folder.
        version: of nuScenes' tables; None: the only one.
        scenes: names of a dataroot's scenes, or keyframes such as `scene-0103:0-4`; empty for every scene.
        topics: YAML file that maps the topics of a recording to sensors.
        taxonomy: of the network; None: the data set's own.
        signals: of the vehicle, which a recording may have, by name.
        between: also frames between a dataroot's keyframes, at least so many seconds apart; None: none.
    """
    if is_recording(path):
        if version is not None or scenes:
            raise InputError(f"{path}: a recording is one drive; --version and --scenes choose within a dataroot")
        return [RecordedDrive(path, load_topics(topics, spec.rig), spec, taxonomy, signals)]
    if topics is not None:
        raise InputError(f"{path}: a dataroot has no topics; --topics goes with a .mcap file or a rosbag2")
    if not format_and_path(path)[1].exists():
        raise InputError(f"{path}: neither a recording (.mcap, .db3, rosbag2) nor a dataroot")
    tables = open_source(path, version, spec.rig, taxonomy)
    selectors: dict[str, list[str]] = {}  # several parts of a scene are one drive
    for selector in scenes or tables.scenes():
        selectors.setdefault(selector.partition(":")[0], []).append(selector)
    return [DatasetDrive(tables, parts, spec, between) for parts in selectors.values()]
