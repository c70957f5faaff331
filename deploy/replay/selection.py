"""Select the frames of the drives that are replayed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

from perception.errors import InputError
from perception.frame import Frame

if TYPE_CHECKING:
    from deploy.replay.sources import Drive


@dataclass(frozen=True)
class Selection:
    """A part of every drive.

    Args:
        start: s since the first frame of the drive.
        end: s; later frames are left out.
        every: select every Nth of these frames.

    Raises:
        InputError: no frame can be selected.
    """

    start: float = 0.0
    end: float = math.inf
    every: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise InputError(f"--start {self.start:g} --end {self.end:g}: give seconds with 0 <= START < END")
        if self.every < 1:
            raise InputError(f"--every {self.every}: give 1 for every frame, 2 for every second one, ...")

    def before_end(self, drive: Iterable[Frame]) -> Iterator[Frame]:
        """Yield the frames of one drive before `end`; reads one more frame."""
        start = None
        for frame in drive:
            start = frame.timestamp if start is None else start
            if 1e-6 * (frame.timestamp - start) >= self.end:
                return
            yield frame

    def select(self, frames: Iterable[Frame], needed: bool = True) -> Iterator[Frame]:
        """Yield the selected frames of one or more drives.

        Raises:
            InputError: there is none, but one is needed.
        """
        scene, start, last, none = None, 0, 0.0, True
        for frame in frames:
            if frame.scene != scene:
                scene, start, chosen = frame.scene, frame.timestamp, self.chooser()
            last = 1e-6 * (frame.timestamp - start)
            if chosen(frame.timestamp):
                none = False
                yield frame
        if none and needed:
            raise InputError(f"--start {self.start:g}: the last frame of the drive is at {last:.1f} s; start earlier")

    def chooser(self) -> Callable[[int], bool]:
        """Whether a frame of one drive is selected, by its time (us); to be asked for each frame, in their order."""
        start: int | None = None
        inside = count()

        def chosen(time: int) -> bool:
            nonlocal start
            start = time if start is None else start
            return self.start <= 1e-6 * (time - start) < self.end and next(inside) % self.every == 0

        return chosen

    def expected_of(self, drive: Drive) -> int:
        """About how many of the frames of a drive are selected."""
        return self.expected(len(drive), drive.seconds)

    def expected(self, frames: int, seconds: float) -> int:
        """How many of the frames of a drive are selected, if they come at a steady rate.

        Args:
            seconds: from the first to the last of them.
        """
        period = seconds / max(frames - 1, 1)
        if period <= 0:
            return -(-frames // self.every)
        first = math.ceil(self.start / period)
        end = frames if math.isinf(self.end) else min(frames, math.ceil(self.end / period))
        return -(-max(end - first, 0) // self.every)
