"""What was wrong with a recording: counted, never fatal."""

from __future__ import annotations

from collections import Counter
from typing import Any

from perception.frame import CAMERAS, LIDAR, Frame

MOST_LINES = 10  # of damage that are kept as text; more are counted

KINDS = {
    "corrupt": "bytes, sizes or numbers that cannot be; dropped",
    "duplicated": "the same stamp again; dropped",
    "out_of_order": "an earlier stamp than the message before it; used",
    "late": "after the frame it belongs to was done; not used",
    "unposed": "no pose of the vehicle at its time; dropped",
}


class Counts:
    """Messages, frames, and what was wrong with them. Its size does not depend on the length of the recording."""

    def __init__(self) -> None:
        self.frames = 0
        self.messages: Counter[str] = Counter()  # by topic
        self.missing: Counter[str] = Counter()  # frames without this sensor, by sensor
        self.unposed_frames = 0  # moments of which no frame was made, because the vehicle's pose is not known
        self._wrong: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
        self._reasons: dict[str, Counter[str]] = {}  # of corrupt messages, by topic
        self._damage: list[str] = []
        self._damaged = 0

    def wrong(self, kind: str, topic: str) -> None:
        """A message of one of KINDS."""
        self._wrong[kind][topic] += 1

    def corrupt(self, topic: str, reason: str) -> None:
        """A corrupt message; the reason is one of a fixed number of texts."""
        self.wrong("corrupt", topic)
        self._reasons.setdefault(topic, Counter())[reason] += 1

    def damage(self, line: str) -> None:
        """A part of the recording that cannot be read."""
        self._damaged += 1
        if len(self._damage) < MOST_LINES:
            self._damage.append(line)

    def frame(self, frame: Frame) -> None:
        """A frame is done."""
        self.frames += 1
        self.missing.update([LIDAR] if frame.points is None else [])
        self.missing.update(name for name in CAMERAS if name not in frame.cameras)

    def summary(self) -> dict[str, Any]:
        """As JSON; what did not occur is left out."""
        found = {kind: dict(sorted(topics.items())) for kind, topics in self._wrong.items() if topics}
        return {
            "frames": self.frames,
            "messages": dict(sorted(self.messages.items())),
            "missing": dict(sorted(self.missing.items())),
            "unposed_frames": self.unposed_frames,
            **found,
            "reasons": {topic: dict(sorted(each.items())) for topic, each in sorted(self._reasons.items())},
            "damaged_places": self._damaged,
            "damage": list(self._damage),
        }

    def line(self) -> str:
        """The summary in a line."""
        parts = [f"{self.frames} frames"]
        if self.messages:
            parts.append(f"{self.messages.total()} messages")
        parts += [f"{n.total()} {kind.replace('_', ' ')}" for kind, n in self._wrong.items() if n]
        parts += [f"{self.unposed_frames} frames without a pose left out"] if self.unposed_frames else []
        parts += [f"{sensor} missing in {n}" for sensor, n in sorted(self.missing.items())]
        parts += [f"damaged in {self._damaged} places"] if self._damaged else []
        return ", ".join(parts)
