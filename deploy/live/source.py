"""Where messages come from while a vehicle drives: a recording that is played at its own pace, or zenoh."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from threading import Event, Thread
from typing import Protocol

from deploy.recordings.drives import open_recording
from deploy.recordings.messages import RawMessage, RecordingInfo

Receive = Callable[[RawMessage], None]
Damage = Callable[[str], None]


class Source(Protocol):
    """Sends messages from threads of its own, until `close`."""

    @property
    def info(self) -> RecordingInfo: ...

    def topics(self) -> Mapping[str, str]:
        """The topics that send, with the types of their messages; "" for JSON."""
        ...

    def start(self, topics: Collection[str], receive: Receive, damage: Damage) -> None:
        """Call `receive` for each message of these topics from now on, from any thread.

        `damage` is called with a line of text for each part of a recording that cannot be read.
        """
        ...

    def now(self) -> int:
        """The time (us) by the clock of `RawMessage.time`."""
        ...

    @property
    def ended(self) -> bool:
        """Whether no message will come any more."""
        ...

    def close(self) -> None: ...


class Playback:
    """A recording whose messages come when they were recorded, by a clock that starts with the first of them.

    The clock is `rate` times as fast as recorded.
    """

    def __init__(self, path: Path, rate: float = 1.0) -> None:
        self._recording, self._rate = open_recording(path), rate
        self.info = self._recording.info
        self._first: int | None = None  # us, time of the first message
        self._begin = 0.0  # s, when it was sent
        self._stop, self._end = Event(), Event()
        self._thread: Thread | None = None

    def topics(self) -> Mapping[str, str]:
        return {topic: self.info.types.get(topic, "") for topic, count in self.info.counts.items() if count}

    def start(self, topics: Collection[str], receive: Receive, damage: Damage) -> None:
        given = frozenset(topics), receive, damage
        self._thread = Thread(target=self._play, args=given, name="playback", daemon=True)
        self._thread.start()

    def _play(self, topics: Collection[str], receive: Receive, damage: Damage) -> None:
        try:
            for raw in self._recording.read(topics, damage):
                if self._first is None:
                    self._first, self._begin = raw.time, time.monotonic()
                if self._stop.wait(max(0.0, 1e-6 * (raw.time - self.now()) / self._rate)):
                    return
                receive(raw)
        finally:
            self._end.set()

    def now(self) -> int:
        if self._first is None:
            return 0
        return self._first + round(1e6 * self._rate * (time.monotonic() - self._begin))

    @property
    def ended(self) -> bool:
        return self._end.is_set()

    def close(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
