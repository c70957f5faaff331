"""When to make a frame, in a recording that does not say: at LiDAR sweeps, a period apart."""

from __future__ import annotations

_JUMP = 10_000_000  # us; a stamp that far back is a clock that was set, or one of the two stamps is damaged
_EARLY = 0.05  # share of the period that a sweep may be early: sweeps do not come to the microsecond


class Pace:
    """Decides from one stamp after the other; holds no more than the last.

    Args:
        period: us.
        lidar: whether there is one; without one, or when it has been silent for half a period too long, pictures set
            the pace.
    """

    def __init__(self, period: int, lidar: bool) -> None:
        self._lidar = lidar
        self._sweep = round(period * (1 - _EARLY))
        self._picture = round(period * 1.5) if lidar else self._sweep
        self._last: int | None = None  # stamp of the last frame
        self._begun: int | None = None  # stamp of the first picture, where a sweep is to be expected
        self.jumps = 0  # how often time went back; with it stamps are unique

    def sweep(self, stamp: int) -> bool:
        """Whether a sweep makes a frame."""
        return self._due(stamp, self._last, self._sweep)

    def picture(self, stamp: int) -> bool:
        """Whether a picture makes a frame."""
        if self._begun is None and self._lidar:
            self._begun = stamp
        return self._due(stamp, self._begun if self._last is None else self._last, self._picture)

    def _due(self, stamp: int, last: int | None, after: int) -> bool:
        back = last is not None and stamp < last - _JUMP
        if last is not None and not back and stamp - last < after:
            return False
        self.jumps += back
        self._last = stamp
        return True
