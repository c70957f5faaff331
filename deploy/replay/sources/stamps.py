"""The stamps of topics, to recognise repeated messages and steps back in time."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from deploy.replay.sources.counts import Counts

STAMPS_KEPT = 64  # of each topic


@dataclass
class _TopicStamps:
    """The latest stamps (us) of one topic."""

    last: int = -1
    recent: deque[int] = field(default_factory=lambda: deque(maxlen=STAMPS_KEPT))


class Stamps:
    """The latest stamps of all topics."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self._topics: dict[str, _TopicStamps] = {}

    def is_new(self, topic: str, stamp: int) -> bool:
        """Whether the topic has not had this stamp before; counts repetitions and steps back in time."""
        stamps = self._topics.setdefault(topic, _TopicStamps())
        if stamp in stamps.recent:
            self._counts.add_problem("duplicated", topic)
            return False
        if stamp < stamps.last:
            self._counts.add_problem("out_of_order", topic)
        stamps.last = stamp
        stamps.recent.append(stamp)
        return True
