"""Decides which messages announce frames: those of the sensor that the network needs most, at that sensor's rate."""

from __future__ import annotations

from collections import deque
from typing import Literal

from deploy.recordings.stamps import LEAP, STAMPS_KEPT

_INTERVALS = 16  # latest ones of the leading sensor, by which its period is measured
_OVERDUE = 0.5  # of a period, after which another sensor stands in for a message that has not come

Answer = Literal["frame", "stand-in", "between", "no"]


class FrameTrigger:
    """Decides for each message whether it announces a frame.

    Every n-th message of the leading sensor does; n times its measured period is nearest to the wanted period. A
    message is too soon if it comes more than half of the measured period before that. For each message of the leading
    sensor that is overdue by half a period, one message of another sensor stands in.

    Args:
        period: us between frames that are wanted.
        leader: topic of the sensor that the network needs most.
    """

    def __init__(self, period: int, leader: str) -> None:
        self.leader, self._wanted = leader, period
        self._intervals: deque[int] = deque(maxlen=_INTERVALS)  # us
        self._latest: int | None = None  # stamp of the leader
        self._came: int | None = None  # us, when the leader's latest message did, or else the first of all
        self._stood_in = 0  # messages for which others stand in, since then
        self._frames: deque[int] = deque(maxlen=STAMPS_KEPT)  # stamps of the leader's latest frames
        self.clock_resets = 0  # how often time went back; with this number stamps are unique

    @property
    def period(self) -> int:
        """The leading sensor's (us): the mean of the intervals near their median; the wanted one without any."""
        if not self._intervals:
            return self._wanted
        median = sorted(self._intervals)[(len(self._intervals) - 1) // 2]
        near = [each for each in self._intervals if abs(each - median) <= median / 2]  # where none was lost between
        return max(1, sum(near) // len(near))

    @property
    def spacing(self) -> int:
        """us between stand-ins."""
        return max(self.period, self._wanted)

    def answer(self, topic: str, stamp: int, time: int) -> Answer:
        """What a message with this stamp, recorded at this time (us), does: announce a frame, also as a stand-in; or
        not, because it is too soon after a frame (`between`), or because the leading sensor is not overdue."""
        if self._came is None:
            self._came = time
        if topic != self.leader:
            overdue = (time - self._came) / self.spacing - _OVERDUE
            if overdue < self._stood_in + 1:
                return "no"
            self._stood_in += 1
            return "stand-in"
        self._measure(stamp, time)
        if any(abs(stamp - each) < self._least for each in self._frames):
            return "between"
        self._frames.append(stamp)
        return "frame"

    def _measure(self, stamp: int, time: int) -> None:
        self._came, self._stood_in = time, 0
        if self._latest is not None and stamp < self._latest - LEAP:
            self.clock_resets += 1
            self._latest = None
            self._frames.clear()
        if self._latest is not None and stamp > self._latest:
            self._intervals.append(stamp - self._latest)
        self._latest = stamp if self._latest is None else max(stamp, self._latest)

    @property
    def _least(self) -> float:
        """us between two frames."""
        own = self.period
        return (max(1, round(self._wanted / own)) - 0.5) * min(own, self._wanted)
