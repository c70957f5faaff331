"""Drives to replay: scenes of a data set, and recordings."""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from operator import itemgetter
from pathlib import Path
from typing import Protocol

from deploy.recordings.assembler import Assembler, DriveInfo
from deploy.recordings.choice import FrameChoice
from deploy.recordings.counts import Counts
from deploy.recordings.latest import Readings
from deploy.recordings.mcap import McapRecording
from deploy.recordings.messages import MessageFile, RecordingInfo
from deploy.recordings.rosbag import RosbagRecording
from deploy.recordings.topics import Topics, load_topics
from perception.datasets.keyframes import Keyframes, Reads
from perception.datasets.nuscenes.descriptions import conditions_of
from perception.datasets.nuscenes.tables import versions
from perception.datasets.sources import format_and_path, open_source
from perception.errors import DAMAGE, InputError
from perception.frame import Conditions, Frame
from perception.scene.signals import SignalConfig
from perception.sensors.inputs import InputSpec
from perception.taxonomy import Taxonomy, load_taxonomy


class Drive(Protocol):
    """A recorded drive: its frames in order of time, and counts of what was wrong with them in the latest reading."""

    name: str  # of the scene or the recording
    sensors: tuple[str, ...]  # names of those that it should have
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


_JITTER = 10_000  # us, by which frames may be nearer to each other than asked for


class DatasetDrive:
    """The keyframes of one scene of a data set, recorded or simulated, in order of time.

    Frames between them have no annotations. All sensors are read, even those that the network does not take, because
    the report shows them. A sensor whose file does not exist, or is damaged, is missing in the frame; damaged ones are
    counted. The arguments are those of `open_drives`.
    """

    def __init__(
        self, tables: Keyframes, selectors: Sequence[str], spec: InputSpec, between: float | None = None
    ) -> None:
        self.tables, self.name = tables, selectors[0].partition(":")[0]
        self._spec, self._between, self.sensors = spec, between, spec.rig.sensors.names
        self.counts = Counts(spec.rig.sensors)
        self._samples = tables.samples(selectors=selectors)

    @property
    def seconds(self) -> float:
        """The time from the first keyframe to the last."""
        return 1e-6 * (self._timestamp(self._samples[-1]) - self._timestamp(self._samples[0]))

    def _timestamp(self, sample: str) -> int:
        return self.tables.recording(sample).timestamp

    def __len__(self) -> int:
        return len(self._samples)

    def frames(self, choice: FrameChoice | None = None) -> Iterator[Frame]:
        self.counts = Counts(self._spec.rig.sensors)
        count, choice = cache(self.counts.add_damage), choice or FrameChoice()  # a file once, although several read it
        reads = Reads(self._spec.grid.reference, self._spec.sweeps, truth=self._spec.truth)
        for token, timestamp, between in self._all_frames():
            if choice(self.name, timestamp, between):
                before = DAMAGE.set(count)
                try:
                    frame = self.tables.frame(token, reads._replace(annotations=False, truth=()) if between else reads)
                finally:
                    DAMAGE.reset(before)
                if choice.written:
                    self.counts.add_frame(frame)
                yield frame
            elif choice.over:
                return

    def _all_frames(self) -> Iterator[tuple[str, int, bool]]:
        """Token, time (us) and whether it is between two keyframes, of all frames to play."""
        keyframes = [(sample, self._timestamp(sample), False) for sample in self._samples]
        if self._between is None:
            return iter(keyframes)
        every, chosen = self.tables.samples(selectors=[self.name]), set(self._samples)
        times = [self._timestamp(sample) for sample in every]
        inner, least, last = list[tuple[str, int, bool]](), 1e6 * self._between - _JITTER, -math.inf
        for token, time in self.tables.moments(every[0]).items():
            after = bisect(times, time)
            # Of a part of a drive only those between two of its keyframes, so that it begins with a keyframe.
            inside = 0 < after < len(every) and chosen >= {*every[after - 1 : after + 1]}
            if inside and token not in chosen:
                since_last, until_keyframe = time - max(last, times[after - 1]), times[after] - time
                if min(since_last, until_keyframe) >= least:
                    inner.append((token, time, True))
                    last = time
        return iter(sorted(keyframes + inner, key=itemgetter(1)))


def open_recording(path: Path) -> MessageFile:
    """Open a .mcap or .db3 file, or a rosbag2's folder. InputError if it cannot be read."""
    return McapRecording(path) if path.suffix == ".mcap" else RosbagRecording(path)


def describe(info: RecordingInfo, taxonomy: Taxonomy) -> DriveInfo:
    described = info.location or info.description
    conditions = conditions_of(info.description, info.location, taxonomy) if described else Conditions()
    return DriveInfo(info.scene, info.location, conditions)


class RecordedDrive:
    """An MCAP file or a rosbag2, read in constant memory. It has no annotations.

    `counts` has the messages, frames and problems of the latest reading.
    """

    tables = None

    def __init__(
        self,
        path: Path,
        topics: Topics,
        spec: InputSpec,
        taxonomy: Taxonomy | None = None,
        signals: Mapping[str, SignalConfig] | None = None,
    ) -> None:
        self._path, self._spec, self._signals = path, spec, dict(signals or {})
        self._recording = open_recording(path)
        info = self._recording.info
        self.name = info.scene
        self._drive = describe(info, taxonomy or load_taxonomy("nuscenes"))
        self._has_keyframes = topics.keyframes is not None and self._sends(topics.keyframes)
        self.sensors = (*topics.lidars, *topics.cameras, *topics.scanners)
        sending = {name: each for name, each in topics.lidars.items() if info.counts.get(each.topic)}
        topics = topics.model_copy(update={"lidars": sending})  # so that no frame waits for the others
        self._topics = topics
        self.counts = Counts(spec.shown_sensors)

    def _sends(self, topic: str) -> bool:
        """Whether a topic has messages, or may have had some where the recording is damaged."""
        counts, damage = self._recording.info.counts, list[str]()
        if topic not in counts or counts[topic]:
            return topic in counts
        return any(True for _ in self._recording.read({topic}, damage.append)) or bool(damage)

    @property
    def seconds(self) -> float:
        """The time from the first message to the last; 0 if not known."""
        return 1e-6 * self._recording.info.duration

    def __len__(self) -> int:
        """The expected number of frames; damage and gaps reduce it."""
        info = self._recording.info
        if self._has_keyframes:
            return info.counts[str(self._topics.keyframes)]
        return 1 + round(info.duration / (self._topics.period * 1e6))

    def frames(self, choice: FrameChoice | None = None) -> Iterator[Frame]:
        self.counts, choice = (counts := Counts(self._spec.shown_sensors)), choice or FrameChoice()
        readings, named = Readings(self._signals), frozenset(self._topics.names())
        assembler = Assembler(self._topics, self._spec, counts, self._drive, self._has_keyframes, choice, readings)
        counts.messages.update(dict.fromkeys(readings.topics, 0))  # so that a wrong name is seen
        for raw in self._recording.read(named | readings.topics, counts.add_damage):
            counts.messages[raw.topic] += 1
            yield from (each.assemble() for each in assembler.advance(raw.time))
            if choice.over:
                return
            assembler.take(raw)
        yield from (each.assemble() for each in assembler.finish())
        if not assembler.frames:
            raise InputError(f"{self._path}: no frame can be assembled from it: {self._why_no_frame()}")

    def _why_no_frame(self) -> str:
        counts, topics = self.counts, self._topics
        if counts.unposed_frames:
            return (
                f"no pose of {topics.ego_frame} in {topics.global_frame} at the time of any of {counts.unposed_frames} "
                "frames; name the frames in --topics"
            )
        there = sorted(self._recording.info.counts)
        if not set(there) & set(topics.names()):
            shown = ", ".join(there[:8]) + (", ..." if len(there) > 8 else "")
            return f"it has none of the topics that are read; it has {shown or 'none'}; name them in --topics"
        return f"{counts.line()}; name its topics in --topics, or copy it again"
