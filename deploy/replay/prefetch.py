"""Work beside the network's: frames are read before it needs them, and files written while it sees the next frame.

Each of the two is one thread that keeps the order, so a replay writes the same bytes as if there were none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

MOST = 2  # frames that are read and not yet asked for, and frames that are perceived and not yet written

Item = TypeVar("Item")
_END = object()


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items, of which up to MOST are made while the caller works on the one before them.

    An exception is raised where its item would have come.
    """
    with ThreadPoolExecutor(1, "reader") as pool:
        coming: deque[Future[Any]] = deque(pool.submit(next, items, _END) for _ in range(MOST))
        while (item := coming.popleft().result()) is not _END:
            coming.append(pool.submit(next, items, _END))
            yield item


class Behind:
    """Calls functions one after the other, while the caller goes on; he waits where more than MOST are to be done.

    with Behind() as behind:
        behind.call(write, frame)

    All is done when the block ends, by an exception as well. After an exception in one of the calls no other is begun;
    it is raised by the calls of `call` that follow, or when the block ends.
    """

    def __enter__(self) -> Behind:
        self._pool, self._waiting = ThreadPoolExecutor(1, "writer"), deque[Future[None]]()
        return self

    def call(self, function: Callable[..., None], *arguments: Any) -> None:
        before = self._waiting[-1] if self._waiting else None
        self._waiting.append(self._pool.submit(_after, before, function, *arguments))
        if len(self._waiting) > MOST:
            self._waiting.popleft().result()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown()
        if kind is None and self._waiting:
            self._waiting[-1].result()


def _after(before: Future[None] | None, function: Callable[..., None], *arguments: Any) -> None:
    if before is not None:
        before.result()
    function(*arguments)
