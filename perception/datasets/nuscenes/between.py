"""Frames between the keyframes of a dataroot in nuScenes' schema: sweeps and pictures that are no keyframes.

A frame is a sweep of the reference LiDAR with a recording of each other sensor that no other frame has. Its token is
that of the next keyframe with the sweep's time, SAMPLE@MICROSECONDS.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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

        A sweep is no frame where a sensor of the keyframe has no recording of about its time, or one that a keyframe
        or the frame before has already: LiDARs may be faster than cameras. There are none before a keyframe without
        the reference LiDAR.
        """
        keyframe = self.recordings.get(sample, {})
        if self._reference not in keyframe:
            return {}
        last = keyframe[self._reference]
        sweeps = [last, *takewhile(self._is_between, islice(self.recordings.chain(last), 1, None))]
        oldest, others = sweeps[-1].timestamp - OLDEST, list[tuple[int, list[SampleData]]]()
        for row in keyframe.values():
            if row is not last:
                rows = takewhile(lambda each: each.timestamp >= oldest, self.recordings.chain(row))
                others.append((row.timestamp - last.timestamp, [*rows]))
        frames, of_frame_before = dict[str, Mapping[str, SampleData]](), list[SampleData]()
        for sweep in reversed(sweeps[1:]):
            recorded = [each for delay, rows in others for each in _near(rows, sweep.timestamp, delay)]
            complete = len(recorded) == len(others)
            if complete and all(self._is_between(each) and each not in of_frame_before for each in recorded):
                frames[f"{sample}@{sweep.timestamp}"] = {each.channel: each for each in (sweep, *recorded)}
                of_frame_before = recorded
        return frames

    def _is_between(self, row: SampleData) -> bool:
        return not self.recordings.is_keyframe(row)


def _near(rows: Iterable[SampleData], time: int, delay: int) -> list[SampleData]:
    """The recording of about the time of a sweep, us, whose delay is most like the keyframe's; none if there is none.

    It is not always the latest: nuScenes' cameras expose as the LiDAR turns to them, the first one 43 ms before the end
    of its sweep, which is 7 ms after the end of the sweep before.
    """
    near = (each for each in rows if time - OLDEST <= each.timestamp <= time + LATER)
    return sorted(near, key=lambda each: abs(each.timestamp - time - delay))[:1]
