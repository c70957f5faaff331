"""When the frames of a replay are read, perceived and written.

Two threads besides the network's read the next frames and write the files of the last ones. Both keep the order, so
that a replay writes the same bytes as without them. A clock holds frames back until their time.
"""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from perception.frame import Frame

QUEUE_DEPTH = 2  # frames read ahead, and frames waiting to be written

Item = TypeVar("Item")
_END = object()


def prefetch(items: Iterator[Item]) -> Generator[Item, None, None]:
    """Yield the same items, while a thread computes up to QUEUE_DEPTH of them in advance.

    An exception is raised in place of its item. Close the generator to be sure that the thread has ended.
    """
    with ThreadPoolExecutor(1, "reader") as pool:
        coming: deque[Future[Any]] = deque(pool.submit(next, items, _END) for _ in range(QUEUE_DEPTH))
        while (item := coming.popleft().result()) is not _END:
            coming.append(pool.submit(next, items, _END))
            yield item


class BackgroundWriter:
    """Calls functions in order in a thread; `call` blocks while more than QUEUE_DEPTH are pending.

    with BackgroundWriter() as background:
        background.call(write, frame)

    All calls are finished when the block ends, even with an exception. After a call has raised an exception, no other
    call starts; the next `call` or the end of the block raises it.
    """

    def __enter__(self) -> BackgroundWriter:
        self._pool, self._waiting = ThreadPoolExecutor(1, "writer"), deque[Future[None]]()
        return self

    def call(self, function: Callable[..., None], *arguments: Any) -> None:
        previous = self._waiting[-1] if self._waiting else None
        self._waiting.append(self._pool.submit(_call_after, previous, function, *arguments))
        if len(self._waiting) > QUEUE_DEPTH:
            self._waiting.popleft().result()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown()
        if kind is None and self._waiting:
            self._waiting[-1].result()


def _call_after(previous: Future[None] | None, function: Callable[..., None], *arguments: Any) -> None:
    if previous is not None:
        previous.result()  # raises its exception
    function(*arguments)


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


@contextmanager
def freeze_objects() -> Iterator[None]:
    """Exclude existing objects, such as tables and the bundle, from garbage collection."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
