"""Decide when to make a frame, in a recording without keyframe messages: at LiDAR sweeps, a period apart."""

from __future__ import annotations

from deploy.replay.sources.stamps import LEAP

_EARLY = 0.05  # share of the period by which a sweep may be early


class FrameTrigger:
    """Decides stamp by stamp, given also the recording time (us).

    Args:
        period: us between frames.
        lidar: whether there is a LiDAR. Without one, or when its sweeps are overdue by half a period, pictures trigger
            frames.
    """

    def __init__(self, period: int, lidar: bool) -> None:
        self._lidar = lidar
        self._sweep_period = round(period * (1 - _EARLY))
        self._picture_period = round(period * 1.5) if lidar else self._sweep_period
        self._last: int | None = None  # stamp of the last frame
        self._last_time = 0  # when it was recorded
        self._first_picture: int | None = None  # its stamp, where there is a LiDAR
        self.clock_resets = 0  # how often time went back; with this number stamps are unique

    def on_sweep(self, stamp: int, time: int) -> bool:
        """Whether this sweep triggers a frame."""
        return self._due(stamp, time, self._last, self._sweep_period)

    def on_picture(self, stamp: int, time: int) -> bool:
        """Whether this picture triggers a frame."""
        if self._first_picture is None and self._lidar:
            self._first_picture = stamp
        return self._due(stamp, time, self._first_picture if self._last is None else self._last, self._picture_period)

    def _due(self, stamp: int, time: int, last: int | None, period: int) -> bool:
        reset = last is not None and stamp < last - LEAP and time - self._last_time >= period
        if last is not None and not reset and stamp - last < period:
            return False
        self.clock_resets += reset
        self._last, self._last_time = stamp, time
        return True
