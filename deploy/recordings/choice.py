"""Which frames of a recorded drive are read: a part of it, or every Nth."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from perception.errors import InputError


@dataclass(frozen=True)
class Selection:
    """A part of every drive.

    Args:
        start: s since the first frame of the drive.
        end: s; later frames are left out.
        every: select every Nth of these frames, without those between keyframes.
    """

    start: float = 0.0
    end: float = math.inf
    every: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise InputError(f"start {self.start:g}, end {self.end:g}: give seconds with 0 <= start < end")
        if self.every < 1:
            raise InputError(f"every {self.every}: give 1 for every frame, 2 for every second one, ...")

    def expected(self, frames: int, seconds: float) -> int:
        """How many of a drive's frames, which last so many seconds, are selected if they come at a steady rate."""
        period = seconds / max(frames - 1, 1)
        if period <= 0:
            return -(-frames // self.every)
        end = frames if math.isinf(self.end) else min(frames, math.ceil(self.end / period))
        return -(-max(end - math.ceil(self.start / period), 0) // self.every)


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
        all_frames: whether the frames that `every` leaves out are perceived as well, as for a network with a memory.
        earlier: whether the others before the end are read too, as for a sensor that shows an earlier frame.

    Attributes:
        time: since the start of the drive.
        over: no later frame is chosen.
        perceived: whether the latest frame is, and not only read.
        written: the results of the latest frame are; else it is perceived for the sake of later frames.
    """

    def __init__(
        self,
        selection: Selection | None = None,
        all_frames: bool = False,
        earlier: bool = False,
    ) -> None:
        self._selection, self.time, self.over = selection, DriveTime(), False
        self._all_frames, self._earlier = all_frames, earlier
        self.perceived, self.written = True, True
        self._first: int | None = None  # us
        self._elapsed = 0.0  # s, which a clock that is set back does not reduce
        self._counts = Counter[str]()  # frames from the start on, without those between keyframes, by scene

    def __call__(self, scene: str, timestamp: int, between: bool = False) -> bool:
        """Whether the next frame (us) is chosen; one `between` the keyframes of its drive is not counted by `every`."""
        seconds, selection = self.time(scene, timestamp), self._selection
        if selection is None:
            self.written = not between
            return True
        self._first = timestamp if self._first is None else self._first
        self._elapsed = max(self._elapsed, 1e-6 * (timestamp - self._first))
        self.over = self.over or self._elapsed >= selection.end
        if self.over or not 0 <= seconds < selection.end:
            return False
        inside = seconds >= selection.start
        self._counts[scene] += inside and not between
        self.written = inside and not between and (self._counts[scene] - 1) % selection.every == 0
        self.perceived = inside and (self.written or between or self._all_frames)
        return self.perceived or self._earlier
