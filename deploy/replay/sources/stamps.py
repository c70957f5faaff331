"""The stamps of topics, to recognise repeated messages, steps back in time, and stamps that are damaged."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from deploy.replay.sources.counts import Counts

STAMPS_KEPT = 64  # of each topic
# us by which the time from one message of a topic to the next may differ between its stamps and the recording; more is
# damage, or a clock that was set.
LEAP = 1_000_000


@dataclass
class _TopicStamps:
    """The latest stamps (us) of one topic."""

    last: int = -1
    recent: deque[int] = field(default_factory=lambda: deque(maxlen=STAMPS_KEPT))
    # us that the latest used stamp is ahead of its recording time, and that of the message before, if it was dropped.
    ahead: list[int] = field(default_factory=list)


class Stamps:
    """The latest stamps of all topics."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self._topics: dict[str, _TopicStamps] = {}

    def is_new(self, topic: str, stamp: int, time: int) -> bool:
        """Whether the stamp is new to the topic and may be right; counts the others, and steps back in time.

        A stamp that leaps against the time of recording (us) is wrong, unless the message before leapt alike: then the
        clock was set.
        """
        stamps = self._topics.setdefault(topic, _TopicStamps())
        if stamp in stamps.recent:
            self._counts.add_problem("duplicated", topic)
            return False
        ahead = stamp - time
        if stamps.ahead and all(abs(ahead - each) > LEAP for each in stamps.ahead):
            stamps.ahead[1:] = [ahead]
            self._counts.add_corrupt(topic, "a stamp far from its recording time")
            return False
        stamps.ahead = [ahead]
        if stamp < stamps.last:
            self._counts.add_problem("out_of_order", topic)
        stamps.last = stamp
        stamps.recent.append(stamp)
        return True
