"""Frames from messages as they arrive: assembled in a thread of their own, of which the newest is perceived."""

from __future__ import annotations

import queue
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from threading import Condition, Event, Thread
from typing import Any, NamedTuple

from deploy.live.source import Source
from deploy.recordings.assembler import Assembler, DriveInfo
from deploy.recordings.choice import FrameChoice
from deploy.recordings.counts import Counts
from deploy.recordings.latest import Readings
from deploy.recordings.messages import CorruptMessage, RawMessage
from deploy.recordings.topics import Topics
from perception.errors import InputError
from perception.frame import Frame
from perception.scene.signals import SignalConfig
from perception.sensors.inputs import InputSpec

MOST_WAITING = 512  # messages that are not assembled yet; of more the oldest are dropped
_STATUSES = {1: "timeout", 2: "invalid"}  # of autoware_sensing_msgs/SourcePointCloudInfo; 0: there are its points
CLOUDS = ("sensor_msgs/msg/PointCloud2", "foxglove.PointCloud")
PICTURES = ("sensor_msgs/msg/CompressedImage", "sensor_msgs/msg/Image", "foxglove.CompressedImage", "foxglove.RawImage")
TICK = 0.02  # s between two looks at the clock


class Arrived(NamedTuple):
    """A frame that is complete, or need not wait any longer."""

    frame: Frame
    time: float  # s, when it was assembled, by time.monotonic


class Intake:
    """Assembles frames, and keeps only the newest one.

    Every frame that a sensor or a keyframe announces ends in one of `outcomes`:

    taken       it was perceived
    superseded  a newer frame came before there was time for it
    failed      it was taken, but the engine raised an exception
    unposed     the vehicle's pose at its time is not known, so that it cannot be placed

    Args:
        spec: of the network.
        signals: of the vehicle, by name.
        drive: name, place and conditions.
    """

    def __init__(
        self, source: Source, topics: Topics, spec: InputSpec, signals: Mapping[str, SignalConfig], drive: DriveInfo
    ) -> None:
        self._source, sending = source, source.topics()
        require_sensors(topics, sending)
        self.counts, self.outcomes = Counts(spec.rig.sensors), Counter[str]()
        self.readings, self._topics = Readings(signals), frozenset(topics.names())
        keyframes = topics.keyframes in sending
        topics = topics.model_copy(update={"keyframes": topics.keyframes if keyframes else None})
        given = topics, spec, self.counts, drive, keyframes, FrameChoice(), self.readings
        self._assembler = Assembler(*given)
        self._messages: deque[RawMessage] = deque()
        self._changed, self._stop, self._ended = Condition(), Event(), False
        self._newest: queue.Queue[Arrived] = queue.Queue(1)
        self.lost: deque[tuple[str, str]] = deque(maxlen=1000)  # token and outcome of the latest frames not perceived
        self._concatenation = topics.concatenation
        self.lacking: Mapping[str, str] = {}  # topic of a LiDAR that the latest joined cloud lacks -> why
        self._failure: BaseException | None = None
        self.tap: Callable[[RawMessage], None] | None = None  # is given each message, in the order of assembly
        self._thread = Thread(target=self._run, name="intake", daemon=True)

    def start(self) -> None:
        """Begin to assemble."""
        self._thread.start()
        joined = {self._concatenation} if self._concatenation else set()
        self._source.start(self._topics | self.readings.topics | joined, self.receive)

    def receive(self, raw: RawMessage) -> None:
        """Take a message; called by the source's threads."""
        with self._changed:
            if self.tap is not None:
                self.tap(raw)
            self._messages.append(raw)
            if len(self._messages) > MOST_WAITING:
                self.counts.add_problem("overrun", self._messages.popleft().topic)
            self._changed.notify()

    def take(self, seconds: float) -> Arrived | None:
        """The newest frame; waits for one for so long, and returns None without one."""
        try:
            arrived = self._newest.get(timeout=seconds)
        except queue.Empty:
            if self._failure is not None:
                raise self._failure from None
            return None
        self.outcomes["taken"] += 1
        return arrived

    def fail(self, arrived: Arrived) -> None:
        """Say that a frame that was taken could not be perceived."""
        self.outcomes["taken"] -= 1
        self._lose(arrived.frame.token, "failed")

    @property
    def ended(self) -> bool:
        """Whether no frame will come any more."""
        return self._ended and self._newest.empty() and self._failure is None  # which `take` raises

    @property
    def announced(self) -> int:
        """How many frames were announced; those that are not among `outcomes` wait for messages, or to be taken."""
        return self._assembler.announced

    def close(self) -> None:
        self._stop.set()
        self._source.close()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                raw = self._next_message()
                for frame in self._frames(raw):
                    self._offer(frame)
                if raw is None and self._source.ended and not self._messages:
                    self._finish()
                    break
        except BaseException as error:  # raised where the frames are taken
            self._failure = error
        finally:
            self._ended = True

    def _finish(self) -> None:
        """Offer the frames that still wait, each when the one before was taken."""
        for frame in self._assembler.finish():
            while not self._newest.empty() and not self._stop.is_set():
                time.sleep(TICK)
            self._offer(frame)
        self._lose_unposed()

    def _next_message(self) -> RawMessage | None:
        """The next message; None if there is none for a moment. Meanwhile pictures of waiting frames are decoded."""
        with self._changed:
            if self._messages:
                return self._messages.popleft()
        if self._assembler.decode_ahead(self._source.now()):
            return None
        with self._changed:
            if not self._messages:
                self._changed.wait(TICK)
            return self._messages.popleft() if self._messages else None

    def _frames(self, raw: RawMessage | None) -> Iterator[Frame]:
        """The frames that a message completes, and those that have waited long enough."""
        now = self._source.now()
        if raw is not None:
            now = raw.time
            yield from self._assembler.advance(now)
            self._add(raw)
        else:
            yield from self._assembler.advance(now)
        yield from self._assembler.complete(now)
        self._lose_unposed()

    def _add(self, raw: RawMessage) -> None:
        counts = self.counts
        counts.messages[raw.topic] += 1
        if raw.topic == self._concatenation:
            with counts.corrupt(raw.topic):
                self.lacking = _lacking(raw.parse(raw.data))
            return
        if raw.topic in self.readings.topics:
            with counts.corrupt(raw.topic):
                self.readings.add(raw.topic, raw.time, raw.parse(raw.data))
        if raw.topic in self._topics:
            with counts.corrupt(raw.topic):
                self._assembler.add(raw.topic, raw.time, raw.decode(raw.data))

    def _offer(self, frame: Frame) -> None:
        """Put a frame in the place of one that was not taken yet."""
        while True:
            try:
                self._newest.put_nowait(Arrived(frame, time.monotonic()))
                return
            except queue.Full:
                try:
                    older = self._newest.get_nowait()
                except queue.Empty:
                    continue
                self._lose(older.frame.token, "superseded")

    def _lose_unposed(self) -> None:
        while self._assembler.unposed:
            self._lose(self._assembler.unposed.popleft(), "unposed")

    def _lose(self, token: str, outcome: str) -> None:
        self.outcomes[outcome] += 1
        self.lost.append((token, outcome))


def _lacking(info: Any) -> dict[str, str]:
    """The LiDARs, by their topics, whose points are not in a joined cloud, and why (SourcePointCloudInfo)."""
    try:
        statuses = {str(each.topic): int(each.status) for each in info.source_info}
    except AttributeError:
        raise CorruptMessage("another message type than the map of topics says") from None
    return {topic: _STATUSES.get(status, "unknown") for topic, status in statuses.items() if status}


def require_sensors(topics: Topics, sending: Mapping[str, str]) -> None:
    """Raise InputError unless a sensor's topic sends, or if one sends what cannot be read."""
    if not sending.keys() & {*topics.sensors}:
        there = ", ".join(sorted(sending)[:12]) or "none"
        raise InputError(
            f"none of the sensors' topics {', '.join(topics.sensors)} sends; there are {there}; name them in --topics"
        )
    for types, names in (
        (CLOUDS, [each.topic for each in topics.lidars.values()]),
        (PICTURES, [each.image for each in topics.cameras.values()]),
    ):
        for topic in (name for name in names if sending.get(name, types[0]) not in types):
            raise InputError(
                f"{topic}: has messages of type {sending[topic] or 'JSON'}, not {' or '.join(types)}; name another "
                "topic in --topics"
            )
