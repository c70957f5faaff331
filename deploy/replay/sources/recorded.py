"""A recording from a vehicle, as a drive to replay."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from deploy.replay.sources.assemble import Assembler, DriveInfo
from deploy.replay.sources.counts import Counts
from deploy.replay.sources.mcap import McapRecording
from deploy.replay.sources.messages import Corrupt
from deploy.replay.sources.reading import Recording
from deploy.replay.sources.rosbag import RosbagRecording
from deploy.replay.sources.topics import Topics
from perception.datasets.nuscenes.dataset import conditions_of
from perception.errors import InputError
from perception.frame import Conditions, Frame
from perception.sensors.inputs import InputSpec


class RecordedDrive:
    """An MCAP file or a rosbag2, frame by frame in constant memory. It has no annotations.

    `counts` says what was wrong with it, of the reading that was begun last.

    Args:
        path: of a .mcap or .db3 file, or of a rosbag2's folder.
        topics: which of its topics are which sensor.
        spec: what the network takes: frame of reference and number of LiDAR sweeps.

    Raises:
        InputError: it cannot be read at all. While it is read: there is no frame in it.
    """

    tables = None

    def __init__(self, path: Path, topics: Topics, spec: InputSpec) -> None:
        self._path, self._spec = path, spec
        self._recording: Recording = McapRecording(path) if path.suffix == ".mcap" else RosbagRecording(path)
        held = self._recording.held
        known = held.location or held.description
        conditions = conditions_of(held.description, held.location) if known else Conditions()
        self._drive = DriveInfo(held.scene, held.location, conditions)
        self._keyframed = topics.keyframes is not None and topics.keyframes in held.counts
        if topics.lidar is not None and not held.counts.get(topics.lidar.topic):
            topics = topics.model_copy(update={"lidar": None})  # no frame shall wait for it
        self._topics = topics
        self.counts = Counts()

    @property
    def seconds(self) -> float:
        """From the first message to the last; 0 where the recording does not say."""
        return 1e-6 * self._recording.held.duration

    def __len__(self) -> int:
        """How many frames to expect; damage and gaps make them fewer."""
        held = self._recording.held
        if self._keyframed:
            return held.counts[str(self._topics.keyframes)]
        return 1 + round(held.duration / (self._topics.period * 1e6))

    def __iter__(self) -> Iterator[Frame]:
        self.counts = counts = Counts()
        reference, sweeps = self._spec.grid.reference, self._spec.sweeps
        assembler = Assembler(self._topics, sweeps, reference, counts, self._drive, self._keyframed)
        for raw in self._recording.read(frozenset(self._topics.names()), counts.damage):
            counts.messages[raw.topic] += 1
            yield from assembler.advance(raw.time)
            try:
                contents = raw.decode(raw.data)
            except Corrupt as error:
                counts.corrupt(raw.topic, str(error))
            else:
                assembler.add(raw.topic, raw.time, contents)
        yield from assembler.finish()
        if not counts.frames:
            raise InputError(f"{self._path}: no frame can be made of it: {self._reason()}")

    def _reason(self) -> str:
        counts, topics = self.counts, self._topics
        if counts.unposed_frames:
            return (
                f"no pose of {topics.ego_frame} in {topics.global_frame} at the time of any of {counts.unposed_frames} "
                "frames; name the frames in --topics"
            )
        there = sorted(self._recording.held.counts)
        if not set(there) & set(topics.names()):
            shown = ", ".join(there[:8]) + (", ..." if len(there) > 8 else "")
            return f"none of the topics that are read is in it; it has {shown or 'none'}; name them in --topics"
        return f"{counts.line()}; name its topics in --topics, or copy it again"
