"""The latest stamps, positions and signals of a recording, in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deploy.replay.sources.counts import Counts
from deploy.replay.sources.messages import CorruptMessage, Fix, stamp_of
from perception.datasets.nuscenes.descriptions import position_on_map
from perception.frame import Reading
from perception.scene.signals import SignalConfig

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


_MOST_FIXES = 256  # fixes
_LONGEST_HOLD = 2_000_000  # us for which a fix is used


class Positions:
    """The latest fixes by satellite, in order of arrival."""

    def __init__(self) -> None:
        self._fixes: deque[Fix] = deque(maxlen=_MOST_FIXES)

    def add(self, fix: Fix) -> None:
        self._fixes.append(fix)

    def at(self, stamp: int, location: str, global_from_ego: np.ndarray) -> tuple[float, float] | None:
        """Latitude and longitude (degrees, WGS 84): of the fix that is closest in time or, without one within 2 s, by
        the vehicle's pose on a map whose origin is known.

        Args:
            stamp: us.
            location: name of the map.
            global_from_ego: (4, 4) pose at that time.
        """
        fix = min(self._fixes, key=lambda each: abs(each.stamp - stamp), default=None)
        if fix is not None and abs(fix.stamp - stamp) <= _LONGEST_HOLD:
            return fix.latitude, fix.longitude
        return position_on_map(location, global_from_ego)


_MOST_READINGS = 256  # readings of a signal
_MAX_TEXT = 200  # characters
_DEFAULT_FIELDS = ("data", "temperature")  # of std_msgs, and of sensor_msgs/Temperature


class Readings:
    """The latest readings of each signal, in order of arrival.

    Args:
        signals: by name; those without a topic are not in recordings.
    """

    def __init__(self, signals: Mapping[str, SignalConfig]) -> None:
        self._fields: dict[str, dict[str, str | None]] = {}  # by topic and signal
        for name, each in signals.items():
            if each.topic is not None:
                self._fields.setdefault(each.topic, {})[name] = each.field
        self._latest = {name: deque[Reading](maxlen=_MOST_READINGS) for name in signals}

    @property
    def topics(self) -> frozenset[str]:
        return frozenset(self._fields)

    def add(self, topic: str, time: int, message: Any) -> None:
        """Add the signals of a message, at its stamp or, without one, when it was recorded (us).

        Raises:
            CorruptMessage: it does not have the field, or that is neither a number nor a text.
        """
        stamp = _stamp(message) or time
        for name, path in self._fields[topic].items():
            self._latest[name].append(Reading(stamp, _value(message, path)))

    def at(self, stamp: int) -> dict[str, Sequence[Reading]]:
        """The readings until a time (us) of the signals that have any, in order of time."""
        found = {name: [each for each in kept if each.timestamp <= stamp] for name, kept in self._latest.items()}
        return {name: sorted(each, key=lambda one: one.timestamp) for name, each in found.items() if each}


def _stamp(message: Any) -> int:
    stamp = getattr(getattr(message, "header", None), "stamp", None)
    seconds, nanoseconds = (getattr(stamp, name, 0) for name in ("sec", "nanosec"))
    if not isinstance(seconds, int) or not isinstance(nanoseconds, int):
        raise CorruptMessage("an invalid stamp")
    return stamp_of(seconds, nanoseconds)


def _value(message: Any, field: str | None) -> float | str:
    if field is None:
        field = next((each for each in _DEFAULT_FIELDS if hasattr(message, each)), _DEFAULT_FIELDS[0])
    value = message
    for part in field.split("."):
        try:
            value = value[int(part)] if part.isdigit() else getattr(value, part)
        except (AttributeError, IndexError, TypeError, KeyError):
            raise CorruptMessage("a message without the signal's field") from None
    if isinstance(value, str) and len(value) <= _MAX_TEXT:
        return value
    if isinstance(value, bool | int | float | np.bool_ | np.number):
        with suppress(OverflowError):
            return float(value)
    raise CorruptMessage("a signal that is neither a number nor a short text")
