"""Stamps of messages: which are new and may be right, whether their clock was set, and how far each topic has come."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from deploy.recordings.counts import Counts

STAMPS_KEPT = 64  # of each topic
# us by which the time from one message of a topic to the next may differ between its stamps and the recording; more is
# damage, or a clock that was set.
LEAP = 1_000_000


class ClockSet(NamedTuple):
    """The first message by a clock that was set; what came before with this stamp or a later one is of another time."""

    stamp: int  # us
    time: int  # us, of recording


class Leaps:
    """Tells a clock that was set from single wrong stamps, by how far ahead of the times of recording they are.

    `clock_set` says whether the latest message shows that the clock was set; `ahead` (us) is of the latest stamp that
    may be right.
    """

    def __init__(self) -> None:
        self.clock_set: ClockSet | None = None
        self.ahead: int | None = None
        self._leapt: ClockSet | None = None  # the message before, if it leapt

    def add(self, stamp: int, time: int) -> bool:
        """Whether the stamp may be right.

        One that leaps against the time of recording (us) is wrong, unless the message before leapt alike: then the
        clock was set.
        """
        ahead, leapt, self.clock_set, self._leapt = stamp - time, self._leapt, None, None
        if self.ahead is not None and abs(ahead - self.ahead) > LEAP:
            if leapt is None or abs(ahead - (leapt.stamp - leapt.time)) > LEAP:
                self._leapt = ClockSet(stamp, time)
                return False
            self.clock_set = ClockSet(min(stamp, leapt.stamp), leapt.time)
        self.ahead = ahead
        return True


class _TopicStamps:
    def __init__(self) -> None:
        self.last, self.recent, self.leaps = -1, deque[int](maxlen=STAMPS_KEPT), Leaps()


class Stamps:
    """The latest stamps of all topics."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self._topics: dict[str, _TopicStamps] = {}

    def is_new(self, topic: str, stamp: int, time: int) -> bool:
        """Whether the stamp is new to the topic and may be right, given the time of recording (us).

        Counts the others, and steps back in time.
        """
        stamps = self._topics.setdefault(topic, _TopicStamps())
        if stamp in stamps.recent:
            self._counts.add_problem("duplicated", topic)
            return False
        if not stamps.leaps.add(stamp, time):
            self._counts.add_corrupt(topic, "a stamp far from its recording time")
            return False
        if stamp < stamps.last:
            self._counts.add_problem("out_of_order", topic)
        stamps.last = stamp
        stamps.recent.append(stamp)
        return True

    def clock_set(self, topic: str) -> ClockSet | None:
        """See `Leaps`, of the topic's latest new stamp."""
        return self._topics[topic].leaps.clock_set

    def shift(self, topic: str) -> int:
        """What must be added to a time of recording (us) for one by the topic's clock, if that is another one."""
        ahead = self._topics[topic].leaps.ahead or 0
        return ahead if abs(ahead) > LEAP else 0


SILENT = 2_000_000  # us without a message, after which no frame waits for a topic
_INTERVALS = 8  # latest ones of a topic, the shortest of which counts
# Of an interval: a message this near to a stamp is nearer to it than the next one will be, with some jitter.
_NEAR = 0.4


@dataclass
class _Topic:
    latest: int  # us, stamp
    time: int  # us, of arrival
    intervals: deque[int] = field(default_factory=lambda: deque(maxlen=_INTERVALS))


class Arrivals:
    """The latest stamps of all topics, each of which comes in order of its stamps."""

    def __init__(self) -> None:
        self._topics: dict[str, _Topic] = {}
        self._start: int | None = None  # us, when the first message arrived

    def add(self, topic: str, stamp: int, time: int) -> None:
        """Add a message with its stamp and the time when it arrived (us)."""
        self._start = time if self._start is None else self._start
        known = self._topics.get(topic)
        if known is None or stamp < known.latest:  # a clock that was set back, or a message that is late
            self._topics[topic] = _Topic(stamp, time)
            return
        known.intervals.append(stamp - known.latest)
        known.latest, known.time = stamp, time

    def is_silent(self, topic: str, time: int) -> bool:
        """Whether the topic has sent nothing for long, at a time of arrival (us)."""
        known, start = self._topics.get(topic), time if self._start is None else self._start
        return time - (start if known is None else known.time) > SILENT

    def is_settled(self, topic: str, stamp: int, time: int) -> bool:
        """Whether at a time of arrival (us) no message to come can be nearer to a stamp; a silent topic sends none."""
        known = self._topics.get(topic)
        if known is None or self.is_silent(topic, time):
            return self.is_silent(topic, time)
        shortest = min(known.intervals, default=0)
        return known.latest >= stamp or stamp - known.latest <= _NEAR * shortest
