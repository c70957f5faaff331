"""How far the messages of each topic have come, to know when a frame need not wait for more of them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

SILENT = 2_000_000  # us without a message, after which no frame waits for a topic
_INTERVALS = 8  # latest ones of a topic, the shortest of which counts
_NEAR = (
    0.4  # of an interval; a message that is as near to a stamp is nearer than the next one will be, with some jitter
)


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
        """Whether no message to come can be nearer to a stamp than those that came; a silent topic sends none.

        Args:
            time: of arrival (us), now.
        """
        known = self._topics.get(topic)
        if known is None or self.is_silent(topic, time):
            return self.is_silent(topic, time)
        shortest = min(known.intervals, default=0)
        return known.latest >= stamp or stamp - known.latest <= _NEAR * shortest
