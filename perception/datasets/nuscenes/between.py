"""Frames between the keyframes of a dataroot in nuScenes' schema: sweeps and pictures that are no keyframes.

A frame is a sweep of the reference LiDAR with the latest recording of each other sensor. Its token is that of the next
keyframe with the sweep's time, SAMPLE@MICROSECONDS.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice, takewhile
from pathlib import Path

from perception.datasets.nuscenes.recordings import Recordings, SampleData
from perception.rig import Rig

LATER = 10_000  # us, that a recording may be after the sweep; rigs have delays of a few milliseconds
OLDEST = 100_000  # us before the sweep; nuScenes' cameras take a picture each 83 ms


def sample_of(token: str) -> str:
    """The keyframe that is, or comes next after, the frame of a token."""
    return token.partition("@")[0]


class FramesBetween:
    """What sensors recorded between keyframes.

    Args:
        folder: of the tables.
        rig: its sensors are read; the first LiDAR is the reference.
    """

    def __init__(self, folder: Path, rig: Rig) -> None:
        self.recordings, self._reference = Recordings(folder, rig, between=True), rig.sensors.lidars[0]

    def before(self, sample: str) -> dict[str, Mapping[str, SampleData]]:
        """Token -> recordings by channel, of the frames from the keyframe before this one up to it, in order of time.

        A sweep is no frame where a sensor of the keyframe has no recording of about its time. There are none before a
        keyframe without the reference LiDAR.

        Raises:
            InputError: sample_data.json lacks an earlier sweep or picture.
        """
        keyframe = self.recordings.get(sample, {})
        if self._reference not in keyframe:
            return {}
        earlier = {name: self.recordings.chain(row) for name, row in keyframe.items() if name != self._reference}
        latest = {name: next(rows, None) for name, rows in earlier.items()}
        sweeps = islice(self.recordings.chain(keyframe[self._reference]), 1, None)
        found: list[dict[str, SampleData]] = []
        for sweep in takewhile(lambda each: not self.recordings.is_keyframe(each), sweeps):
            frame = {self._reference: sweep}
            for name, rows in earlier.items():
                while (row := latest[name]) is not None and row.timestamp > sweep.timestamp + LATER:
                    latest[name] = next(rows, None)
                if row is not None and sweep.timestamp - row.timestamp <= OLDEST:
                    frame[name] = row
            if len(frame) == len(keyframe):
                found.append(frame)
        return {f"{sample}@{frame[self._reference].timestamp}": frame for frame in reversed(found)}
