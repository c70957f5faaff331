"""Messages that came and wait to be decoded."""

from __future__ import annotations

from collections import Counter, deque
from typing import NamedTuple

from deploy.recordings.messages import RawMessage

MOST_MESSAGES = 256  # of a topic that wait
MOST_BYTES = 128 << 20  # of a topic that wait, and of a message


class Received(NamedTuple):
    raw: RawMessage
    time: float  # s, when it came, by time.monotonic
    number: int  # of all messages, in order of arrival


class Backlog:
    """Messages in order of arrival. Each topic has room of its own: one that needs more loses its oldest messages."""

    def __init__(self) -> None:
        self._topics: dict[str, deque[Received]] = {}
        self._bytes, self._number = Counter[str](), 0

    def __len__(self) -> int:
        return sum(map(len, self._topics.values()))

    def add(self, raw: RawMessage, time: float) -> int:
        """Add a message that came at a time (s); returns how many messages of its topic are dropped for it."""
        messages = self._topics.setdefault(raw.topic, deque())
        messages.append(Received(raw, time, self._number))
        self._number, dropped = self._number + 1, 0
        self._bytes[raw.topic] += len(raw.data)
        while len(messages) > MOST_MESSAGES or self._bytes[raw.topic] > MOST_BYTES:
            self._drop_first(messages)
            dropped += 1
        return dropped

    def take(self) -> Received | None:
        """Take the message that came first; None if none waits."""
        waiting = [messages for messages in self._topics.values() if messages]
        return self._drop_first(min(waiting, key=lambda messages: messages[0].number)) if waiting else None

    def _drop_first(self, messages: deque[Received]) -> Received:
        first = messages.popleft()
        self._bytes[first.raw.topic] -= len(first.raw.data)
        return first
