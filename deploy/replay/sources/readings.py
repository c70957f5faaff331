"""The signals of the vehicle in a recording."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from deploy.replay.sources.messages import CorruptMessage, stamp_of
from perception.frame import Reading
from perception.scene.signals import SignalConfig

_MOST = 256  # readings of a signal
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
        self._latest = {name: deque[Reading](maxlen=_MOST) for name in signals}

    @property
    def topics(self) -> frozenset[str]:
        return frozenset(self._fields)

    def add(self, topic: str, time: int, message: Any) -> None:
        """Add the signals of a message, at its stamp or, without one, when it was recorded (us).

        Raises:
            CorruptMessage: it does not have the field, or that is neither a number nor a text.
        """
        stamp = _stamp(message) or time
        for name, field in self._fields[topic].items():
            self._latest[name].append(Reading(stamp, _value(message, field)))

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
