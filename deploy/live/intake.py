"""Frames from messages as they arrive: assembled in a thread of their own, of which the newest is perceived."""

from __future__ import annotations

import queue
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from threading import Condition, Event, Thread
from typing import Any, Literal, NamedTuple

from deploy.live.backlog import MOST_BYTES, Backlog, Received
from deploy.live.policy import Policy
from deploy.live.source import Source
from deploy.recordings.assembler import Assembler, ReadyFrame
from deploy.recordings.choice import FrameChoice
from deploy.recordings.counts import Counts
from deploy.recordings.drives import describe
from deploy.recordings.latest import Readings
from deploy.recordings.messages import CorruptMessage, RawMessage
from deploy.recordings.topics import Topics
from deploy.runtime import Runtime
from perception.errors import InputError
from perception.frame import Frame

_STATUSES = {1: "timeout", 2: "invalid"}  # of autoware_sensing_msgs/SourcePointCloudInfo; 0: there are its points
CLOUDS = ("sensor_msgs/msg/PointCloud2", "foxglove.PointCloud")
PICTURES = ("sensor_msgs/msg/CompressedImage", "sensor_msgs/msg/Image", "foxglove.CompressedImage", "foxglove.RawImage")
TICK = 0.02  # s between two looks at the clock


class Arrived(NamedTuple):
    """A frame that is complete, or need not wait any longer."""

    frame: Frame
    time: float  # s, when the message came after which it need not wait, by time.monotonic


class Intake:
    """Assembles frames for the runtime's network, and keeps only the newest one.

    Of the frames that the waiting messages make ready, the newest is assembled, and no other.

    Every frame that a sensor or a keyframe announces ends in one of `outcomes`:

        perceived
        superseded  a newer frame came before there was time for it
        failed      the engine raised an exception
        untrusted   the engine has failed a golden frame before
        blind       no sensor of the network has sent for it
        unposed     the vehicle's pose at its time is not known, so that it cannot be placed
        replaced    it stood in for a message that came after all
        stopped     it waited when the drive was stopped
    """

    def __init__(self, source: Source, topics: Topics, policy: Policy, runtime: Runtime) -> None:
        self.source, sending, bundle = source, source.topics(), runtime.bundle
        used = bundle.spec.named_sensors
        require_sensors(topics, topics.of(used), sending)
        infos = [each.info for name, each in topics.cameras.items() if name in used.cameras]
        self._needed = [*topics.of(used), *(infos if topics.calibration == "recorded" else ()), topics.poses]
        self.period = topics.period  # s between frames
        self.counts, self.outcomes = Counts(bundle.spec.shown_sensors), Counter[str]()
        self._readings, self._topics = Readings(runtime.sources.signals), frozenset(topics.names())
        keyframes = topics.keyframes if topics.keyframes in sending else None
        # A recording is known whole, as in its replay; a LiDAR of a middleware may come later.
        lidars = {name: each for name, each in topics.lidars.items() if each.topic in sending or not source.info.counts}
        wait = min(topics.wait, policy.lateness)
        own = topics.model_copy(update={"keyframes": keyframes, "wait": wait, "lidars": lidars})
        drive = describe(source.info, bundle.manifest.taxonomy)
        self._assembler = Assembler(
            own, bundle.spec, self.counts, drive, keyframes is not None, FrameChoice(), self._readings
        )
        self._messages = Backlog()
        self._changed, self._stop, self._finished = Condition(), Event(), False
        self._newest: queue.Queue[Arrived] = queue.Queue(1)
        self.lost: deque[tuple[str, str]] = deque(maxlen=1000)  # token and outcome of the latest frames not perceived
        self._concatenation = topics.concatenation
        self.lacking: Mapping[str, str] = {}  # topic of a LiDAR that the latest joined cloud lacks -> why
        self._failure: BaseException | None = None
        self.tap: Callable[[RawMessage], None] | None = None  # is given each message, in the order of assembly
        self._thread = Thread(target=self._run, name="intake", daemon=True)

    def start(self) -> None:
        self._thread.start()
        joined = {self._concatenation} if self._concatenation else set()
        self.source.start(self._topics | self._readings.topics | joined, self.receive, self.counts.add_damage)

    def receive(self, raw: RawMessage) -> None:
        """Take a message; called by the source's threads. One that no recording could hold is dropped."""
        with self._changed:
            if len(raw.data) > MOST_BYTES:
                self.counts.add_problem("overrun", raw.topic)
                return
            if self.tap is not None:
                self.tap(raw)
            for _ in range(self._messages.add(raw, time.monotonic())):
                self.counts.add_problem("overrun", raw.topic)
            self._changed.notify()

    def take(self, seconds: float) -> Arrived | None:
        """The newest frame; waits for one for so long, and returns None without one."""
        with suppress(queue.Empty):
            return self._newest.get(timeout=seconds)
        if self._failure is not None:
            raise self._failure
        return None

    def end(self, arrived: Arrived, outcome: Literal["perceived", "failed", "untrusted", "blind"]) -> None:
        """Say what became of a frame that was taken."""
        if outcome == "perceived":
            self.outcomes[outcome] += 1
        else:
            self._lose(arrived.frame.token, outcome)

    @property
    def unheard(self) -> list[str]:
        """The topics that the network needs and that have sent nothing so far."""
        return [topic for topic in self._needed if not self.counts.messages[topic]]

    @property
    def ended(self) -> bool:
        """Whether no frame will come any more."""
        return self._finished and self._newest.empty() and self._failure is None  # which `take` raises

    @property
    def announced(self) -> int:
        """How many frames were announced; those that are not among `outcomes` wait for messages or for the engine."""
        return self._assembler.announced

    def close(self) -> None:
        """Take nothing more; the frames that still wait end here."""
        self._stop.set()
        self.source.close()
        self._thread.join()
        self._lose_left_out()
        with suppress(queue.Empty):
            self._lose(self._newest.get_nowait().frame.token, "stopped")
        for token in self._assembler.waiting:
            self._lose(token, "stopped")

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                idle = not self._take_waiting()
                if idle and self.source.ended and not self._messages and not self._stop.is_set():
                    self._finish()
                    break
        except BaseException as error:  # raised where the frames are taken
            self._failure = error
        finally:
            self._finished = True

    def _take_waiting(self) -> bool:
        """Take all messages that wait, and offer the newest frame that is ready then; False if no message came."""
        with self._changed:
            waiting = len(self._messages)
        newest: tuple[ReadyFrame, float] | None = None
        for _ in range(max(1, waiting)):
            received = self._next_message()
            # Not the time after assembly: what waits and is decoded slowly would seem to be in time.
            came = time.monotonic() if received is None else received.time
            for ready in self._ready(None if received is None else received.raw):
                if newest is not None:
                    self._lose(newest[0].token, "superseded")
                newest = ready, came
            if received is None or self._stop.is_set():
                break
        if newest is not None:
            self._offer(*newest)
        return received is not None

    def _finish(self) -> None:
        """Offer the frames that still wait, each when the one before was taken."""
        for ready in self._assembler.finish():
            while not self._newest.empty() and not self._stop.is_set():
                time.sleep(TICK)
            self._offer(ready, time.monotonic())
            if self._stop.is_set():
                return
        self._lose_left_out()

    def _next_message(self) -> Received | None:
        """The next message; None if there is none for a moment. Meanwhile pictures of waiting frames are prepared."""
        with self._changed:
            if self._messages:
                return self._messages.take()
        prepared = self._assembler.prepare_ahead(self.source.now())
        with self._changed:
            if not prepared and not self._messages:
                self._changed.wait(TICK)
            return self._messages.take()

    def _ready(self, raw: RawMessage | None) -> Iterator[ReadyFrame]:
        """The frames that a message completes, and those that have waited long enough."""
        now = self.source.now() if raw is None else raw.time
        yield from self._assembler.advance(now)
        if raw is not None:
            self._add(raw)
        yield from self._assembler.complete(now)
        self._lose_left_out()

    def _add(self, raw: RawMessage) -> None:
        counts = self.counts
        counts.messages[raw.topic] += 1
        if raw.topic == self._concatenation:
            with counts.corrupt(raw.topic):
                self.lacking = _lacking(raw.parse(raw.data))
        else:
            self._assembler.take(raw)

    def _offer(self, ready: ReadyFrame, came: float) -> None:
        """Put a frame in the place of one that was not taken yet; one that comes after the stop waits for nothing."""
        if self._stop.is_set():
            self._lose(ready.token, "stopped")
            return
        arrived = Arrived(ready.assemble(), came)
        while True:
            try:
                self._newest.put_nowait(arrived)
                return
            except queue.Full:
                with suppress(queue.Empty):  # it is taken just now
                    self._lose(self._newest.get_nowait().frame.token, "superseded")

    def _lose_left_out(self) -> None:
        while self._assembler.lost:
            self._lose(*self._assembler.lost.popleft())

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


def require_sensors(topics: Topics, named: Sequence[str], sending: Mapping[str, str]) -> None:
    """Raise InputError unless one of the named sensors' topics sends, or if one sends what cannot be read."""
    if not sending.keys() & {*named}:
        there = ", ".join(sorted(sending)[:12]) or "none"
        raise InputError(
            f"none of the sensors' topics {', '.join(named)} sends; there are {there}; name them in --topics"
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
