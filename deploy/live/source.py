"""Where messages come from while a vehicle drives: a recording that is played at its own pace, or a middleware."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from threading import Event, Thread
from typing import Protocol, TypeVar

from deploy.recordings import ros
from deploy.recordings.drives import open_recording
from deploy.recordings.messages import RawMessage, RecordingInfo

Receive = Callable[[RawMessage], None]
Damage = Callable[[str], None]
_DISCOVERY, _SETTLED = 10.0, 1.0  # s, at most, and without a change
T = TypeVar("T")


def is_latched(topic: str) -> bool:
    """Whether a late subscriber gets the topic's last message, as of static transforms in any namespace."""
    return topic.rpartition("/")[2] == "tf_static"


def settled(found: Callable[[], T]) -> T:
    """What is found on a network once there is anything and it does not change; waits for at most ten seconds."""
    end, last, since = time.monotonic() + _DISCOVERY, found(), time.monotonic()
    while time.monotonic() < end and (not last or time.monotonic() - since < _SETTLED):
        time.sleep(0.05)
        before, last = last, found()
        since = since if last == before else time.monotonic()
    return last


class Source(Protocol):
    """Sends messages from threads of its own, until `close`."""

    @property
    def info(self) -> RecordingInfo:
        """Of the drive."""
        ...

    def topics(self) -> Mapping[str, str]:
        """The topics that send, with the types of their messages; "" for JSON."""
        ...

    def start(self, topics: Collection[str], receive: Receive, damage: Damage) -> None:
        """Call `receive` for each message of these topics from now on, from any thread.

        Args:
            damage: called with a line of text for each part of a recording that cannot be read.
        """
        ...

    def now(self) -> int:
        """The time (us) by the clock of `RawMessage.time`."""
        ...

    @property
    def ended(self) -> bool:
        """Whether no message will come any more."""
        ...

    def close(self) -> None:
        """Send nothing more."""
        ...


class Bus(ABC):
    """A middleware of ROS 2 nodes, without an installed ROS: a source, and where messages are published.

    Messages are CDR with their header of four bytes. Its clock has the host's time as of its start, and goes on alike
    when that is set: stamps that go back are then seen to, and no frame waits until an earlier time comes again.
    """

    info = RecordingInfo({}, 0, "live")
    ended = False

    def __init__(self) -> None:
        self._publishers: dict[str, Callable[[bytes], None]] = {}  # by topic
        self._start = time.time_ns() - time.monotonic_ns()

    def topics(self) -> Mapping[str, str]:
        """The topics that other nodes publish, with their types; waits for them for at most ten seconds."""
        return settled(self._published)

    def advertise(self, topic: str, type_name: str) -> None:
        """Say that a topic will be published."""
        if topic not in self._publishers:
            self._publishers[topic] = self._publisher(topic, type_name)

    def publish(self, topic: str, type_name: str, data: bytes) -> None:
        """Send a message to the subscribers of a topic."""
        self.advertise(topic, type_name)
        self._publishers[topic](data)

    def wait_for_subscribers(self) -> None:
        """Wait until somebody has subscribed, and for a while to no further topic; at most ten seconds."""
        settled(self._subscribers)

    def now(self) -> int:
        return (self._start + time.monotonic_ns()) // 1000

    @abstractmethod
    def start(self, topics: Collection[str], receive: Receive, damage: Damage) -> None: ...

    @abstractmethod
    def close(self) -> None: ...

    @abstractmethod
    def _published(self) -> Mapping[str, str]:
        """The topics, with their types, that other nodes publish now."""

    @abstractmethod
    def _publisher(self, topic: str, type_name: str) -> Callable[[bytes], None]:
        """What sends the messages of a topic."""

    @abstractmethod
    def _subscribers(self) -> int:
        """How many subscribers there are of all that is published."""


class Playback:
    """A recording whose messages come when they were recorded, by a clock that starts with the first of them.

    Args:
        path: a .mcap or .db3 file, or a rosbag2's folder.
        rate: of the clock; 2: twice as fast as recorded.

    Raises:
        InputError: it cannot be read.
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


def republish(playback: Playback, bus: Bus) -> None:
    """Play a recording's ROS 2 messages over a middleware until it ends, as `ros2 bag play`, once somebody listens."""
    try:
        types = {topic: kind for topic, kind in playback.topics().items() if kind in ros.TYPES.types}
        for topic, kind in types.items():
            bus.advertise(topic, kind)
        bus.wait_for_subscribers()
        playback.start(types, lambda raw: bus.publish(raw.topic, raw.type_name, raw.data), print)
        while not playback.ended:
            time.sleep(0.05)
        time.sleep(1)  # what was sent last must arrive
    finally:
        playback.close()
        bus.close()
