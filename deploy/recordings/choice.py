"""Which frames of a recorded drive are read: a part of it, every Nth, or a segment with what comes before."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

from perception.errors import InputError

WARM_UP = 10.0  # s; tracks live 3 s, beliefs change within 2 s, and the map around the vehicle is seen on the way
_IDS = 1_000_000  # of tracks and obstacles in a segment


class Segment(NamedTuple):
    """A part of a long drive that is replayed as a drive of its own, by time since the first frame of the drive.

    The frames of the warm-up before it bring tracks, map, beliefs and health up to date; they are not counted.
    """

    number: int  # in the drive, from 0 on
    start: float  # s
    end: float  # s; infinite for the last one
    warm_up: float = WARM_UP  # s

    @property
    def suffix(self) -> str:
        """What follows the drive's name."""
        return f"@{self.start:g}s"

    @property
    def first_id(self) -> int:
        """The ids of its tracks and obstacles begin here, so that those of a drive differ."""
        return 1 + self.number * _IDS


WHOLE = Segment(0, 0.0, math.inf)  # a drive that is not cut


@dataclass(frozen=True)
class Selection:
    """A part of every drive.

    Args:
        start: s since the first frame of the drive.
        end: s; later frames are left out.
        every: select every Nth of these frames, without those between keyframes.

    Raises:
        InputError: no frame can be selected.
    """

    start: float = 0.0
    end: float = math.inf
    every: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise InputError(f"--start {self.start:g} --end {self.end:g}: give seconds with 0 <= START < END")
        if self.every < 1:
            raise InputError(f"--every {self.every}: give 1 for every frame, 2 for every second one, ...")

    def segments(self, seconds: float, length: float | None) -> list[Segment]:
        """The segments of a drive in which frames may be selected; WHOLE alone if it is not longer than one.

        Args:
            seconds: from the first frame of the drive to the last.
            length: s, of a segment; None: drives are not cut.
        """
        if length is None or seconds <= length:
            return [WHOLE]
        count = math.ceil(seconds / length)
        ends = [*(length * (i + 1) for i in range(count - 1)), math.inf]
        found = [Segment(i, length * i, end) for i, end in enumerate(ends)]
        return [each for each in found if each.end > self.start and each.start < self.end]

    def expected(self, frames: int, seconds: float, segment: Segment = WHOLE) -> int:
        """How many of the frames of a drive are selected, if they come at a steady rate.

        Args:
            seconds: from the first to the last of them.
            segment: of the drive.
        """
        period = seconds / max(frames - 1, 1)
        if period <= 0:
            return -(-frames // self.every)
        first = math.ceil(self.start / period)

        def before(time: float) -> int:
            end = frames if math.isinf(time) else min(frames, math.ceil(time / period))
            return -(-max(end - first, 0) // self.every)

        return before(min(self.end, segment.end)) - before(min(self.end, segment.start))


class DriveTime:
    """The time since the first frame of a drive."""

    def __init__(self) -> None:
        self._starts: dict[str, int] = {}  # us, by scene, since a recording may have several

    def __call__(self, scene: str, timestamp: int) -> float:
        """Seconds since the first frame of the scene, which is the first one that is asked for."""
        return 1e-6 * (timestamp - self._starts.setdefault(scene, timestamp))


class FrameChoice:
    """Decides which frames of a drive are read. It is asked once for each frame, in their order.

    Args:
        selection: None: all, also those before the start by a clock that was set.
        segment: which frames of the selection are chosen, with those of its warm-up.
        all_frames: whether the frames that `every` leaves out are perceived as well, as for a network with a memory.
        earlier: whether the others before the end are read too, as for a sensor that shows an earlier frame.

    Attributes:
        time: since the start of the drive.
        over: no later frame is chosen.
        perceived: whether the latest frame is, and not only read.
        warming: the latest frame is before the segment.
        written: the results of the latest frame are; else it is perceived for the sake of later frames.
    """

    def __init__(
        self,
        selection: Selection | None = None,
        segment: Segment = WHOLE,
        all_frames: bool = False,
        earlier: bool = False,
    ) -> None:
        self._selection, self.time, self.over = selection, DriveTime(), False
        self._segment, self._all_frames, self._earlier = segment, all_frames, earlier
        self.perceived, self.warming, self.written = True, False, True
        self._first: int | None = None  # us
        self._elapsed = 0.0  # s, which a clock that is set back does not reduce
        self._counts = Counter[str]()  # frames from the start on, without those between keyframes, by scene

    def __call__(self, scene: str, timestamp: int, between: bool = False) -> bool:
        """Whether the next frame is chosen.

        Args:
            timestamp: us.
            between: whether it is between the keyframes of its drive, so that `every` does not count it.
        """
        seconds, selection, segment = self.time(scene, timestamp), self._selection, self._segment
        if selection is None:
            self.written = not between
            return True
        self._first = timestamp if self._first is None else self._first
        self._elapsed = max(self._elapsed, 1e-6 * (timestamp - self._first))
        self.over = self.over or self._elapsed >= min(selection.end, segment.end)
        if self.over or not 0 <= seconds < selection.end:
            return False
        inside = seconds >= selection.start
        self._counts[scene] += inside and not between
        counted = inside and not between and (self._counts[scene] - 1) % selection.every == 0
        near = inside and self._elapsed >= segment.start - segment.warm_up
        self.warming = self._elapsed < segment.start
        self.perceived = near and (counted or between or self._all_frames)
        self.written = counted and not self.warming
        return self.perceived or self._earlier
