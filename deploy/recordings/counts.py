"""Count the problems of a recording, which never stop the replay."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from deploy.recordings.messages import CorruptMessage, RawMessage
from perception.frame import Frame
from perception.rig import Sensors

MOST_LINES = 10  # of damage that are kept as text; further ones are only counted

PROBLEMS = {
    "corrupt": "invalid bytes, sizes, numbers or stamps; dropped",
    "duplicated": "a stamp that the topic had before; dropped",
    "out_of_order": "an earlier stamp than the previous message; used",
    "late": "arrived after its frame was assembled; not used",
    "overrun": "while driving: too many messages of the topic waited, or too large ones; dropped",
    "contested": "from another publisher than the message before, and both go on; used",
    "unposed": "the vehicle's pose is not known at its time; dropped",
    "extrapolated": "the latest pose where a frame needed one up to 20 ms later; held until then",
    "stale": "the latest pose where a frame needed one more than 20 ms later, and at most 50 ms; held until then",
    "uncompensated": "times of points that do not fit the stamp, or without the vehicle's pose; used as of one time",
}


class Counts:
    """Numbers of messages, frames and problems. Memory does not grow with the length of the recording."""

    def __init__(self, sensors: Sensors) -> None:
        self._sensors = sensors
        self.frames = 0
        self.messages: Counter[str] = Counter()  # by topic
        self.between: Counter[str] = Counter()  # messages by topic that are too soon after a frame to announce one
        self.missing: Counter[str] = Counter()  # frames without this sensor, by sensor
        self.unposed_frames = 0  # frames that were left out, because the vehicle's pose was not known
        self._problems: dict[str, Counter[str]] = {kind: Counter() for kind in PROBLEMS}
        self._reasons: dict[str, Counter[str]] = {}  # of corrupt messages, by topic
        self._damage: list[str] = []
        self._damaged = 0

    def add_problem(self, kind: str, topic: str) -> None:
        self._problems[kind][topic] += 1

    def problems(self, kind: str) -> dict[str, int]:
        """Number of messages with a problem of PROBLEMS, by topic."""
        return dict(self._problems[kind])

    def add_corrupt(self, topic: str, reason: str) -> None:
        """Count a corrupt message; there is a fixed number of reasons."""
        self.add_problem("corrupt", topic)
        self._reasons.setdefault(topic, Counter())[reason] += 1

    @contextmanager
    def corrupt(self, topic: str) -> Iterator[None]:
        """Count a message of this topic as corrupt if what is done within raises CorruptMessage."""
        try:
            yield
        except CorruptMessage as error:
            self.add_corrupt(topic, str(error))

    def add_damage(self, line: str) -> None:
        self._damaged += 1
        if len(self._damage) < MOST_LINES:
            self._damage.append(line)

    def add_frame(self, frame: Frame) -> None:
        """Count an assembled frame and its missing sensors."""
        self.frames += 1
        lidars = enumerate(self._sensors.lidars)
        self.missing.update(name for i, name in lidars if not frame.has_lidar(i))
        others = (*self._sensors.cameras, *self._sensors.scanners)
        self.missing.update(name for name in others if name not in frame.cameras and name not in frame.scans)

    def summary(self) -> dict[str, Any]:
        """The counts as JSON, without problems that did not occur."""
        found = {kind: dict(sorted(topics.items())) for kind, topics in self._problems.items() if topics}
        return {
            "frames": self.frames,
            "messages": dict(sorted(self.messages.items())),
            "between_frames": dict(sorted(self.between.items())),
            "missing": dict(sorted(self.missing.items())),
            "unposed_frames": self.unposed_frames,
            **found,
            "reasons": {topic: dict(sorted(each.items())) for topic, each in sorted(self._reasons.items())},
            "damaged_places": self._damaged,
            "damage": list(self._damage),
        }

    def line(self) -> str:
        """The summary as one line of text."""
        return line_of(self.summary())


_MOST_PUBLISHERS = 8  # of a topic, the latest


class Publishers:
    """Counts the messages of topics that two publishers send, but for shared topics, which any number may send.

    A publisher that sends again after another one has sent makes a topic contested: one that was started anew is
    another one, and the one before is not heard of again.
    """

    def __init__(self, counts: Counts, shared: Collection[str]) -> None:
        self._counts, self._shared = counts, shared
        self._latest: dict[str, deque[Hashable]] = {}  # by topic, the latest one at the end

    def add(self, raw: RawMessage) -> None:
        if raw.publisher is None or raw.topic in self._shared:
            return
        latest = self._latest.setdefault(raw.topic, deque(maxlen=_MOST_PUBLISHERS))
        if raw.publisher in latest:
            if raw.publisher != latest[-1]:
                self._counts.add_problem("contested", raw.topic)
            latest.remove(raw.publisher)
        latest.append(raw.publisher)


def line_of(summary: Mapping[str, Any]) -> str:
    """A `Counts.summary` as one line of text."""
    parts = [f"{summary['frames']} frames"]
    if summary["messages"]:
        parts.append(f"{sum(summary['messages'].values())} messages")
    found = {kind: summary[kind] for kind in PROBLEMS if kind in summary}
    parts += [f"{sum(topics.values())} {kind.replace('_', ' ')}" for kind, topics in found.items()]
    parts += [f"{n} of {topic} between frames" for topic, n in summary["between_frames"].items()]
    unposed, damaged = summary["unposed_frames"], summary["damaged_places"]
    parts += [f"{unposed} frames without a pose left out"] if unposed else []
    parts += [f"{sensor} missing in {n}" for sensor, n in summary["missing"].items()]
    parts += [f"damaged in {damaged} places"] if damaged else []
    return ", ".join(parts)
