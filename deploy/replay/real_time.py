"""Replay frames at the pace at which they were recorded."""

from __future__ import annotations

import time

from perception.frame import Frame

LONGEST_WAIT = 60.0  # s between two frames; a longer one is a pause, or a clock that was set


class RealTime:
    """Delays each frame of a drive until its own time. A late frame is not dropped."""

    def __init__(self) -> None:
        self.behind = 0.0  # s, the largest delay of a frame
        self._last: tuple[str, float] | None = None  # scene and s of the latest frame
        self._zero = 0.0  # s, the clock at time 0 of the drive

    def wait_for(self, frame: Frame) -> None:
        """Sleep until it is time for the frame. The first frame of a drive, or after a jump in time, sets the clock."""
        now, seconds = time.monotonic(), 1e-6 * frame.timestamp
        if self._last is None or self._last[0] != frame.scene or not 0 <= seconds - self._last[1] <= LONGEST_WAIT:
            self._zero = now - seconds
        self._last = frame.scene, seconds
        early = self._zero + seconds - now
        self.behind = max(self.behind, -early)
        time.sleep(max(early, 0.0))
