"""Readings of a sensor, by which the health monitor finds faults."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Literal

# Worst first.
Status = Literal[
    "ok", "missing", "dark", "saturated", "frozen", "late", "corrupt", "noisy", "blurred", "thinned", "miscalibrated"
]
# Status, load (feature relative to its limit; a fault above 1) and reason.
Readings = Iterator[tuple[Status, float, str]]


class LastContent:
    """The latest data of a sensor, to detect that it is frozen."""

    def __init__(self) -> None:
        self._content: str | None = None  # hash
        self._timestamp: int | None = None  # us, of the data
        self._first = 0  # us, time of the first frame with them

    def seconds_unchanged(self, content: bytes, timestamp: int | None, now: int) -> float:
        """Seconds since the sensor first had this content, or any content with this timestamp."""
        known = hashlib.blake2b(content, digest_size=16).hexdigest()
        if known != self._content and (timestamp is None or timestamp != self._timestamp):
            self._content, self._timestamp, self._first = known, timestamp, now
        return 1e-6 * (now - self._first)


def load_below(value: float, limit: float) -> float:
    """Load of a value that is healthy above its limit."""
    return limit / max(value, 1e-9)
