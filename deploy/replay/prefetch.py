"""Two threads beside the network: one reads the next frames, one writes files for the last ones.

Each of them keeps the order, so that a replay writes the same bytes as without them.
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
    """Yield the same items; a thread makes up to MOST of them in advance.

    An exception is raised in place of the item that it prevented.
    """
    with ThreadPoolExecutor(1, "reader") as pool:
        coming: deque[Future[Any]] = deque(pool.submit(next, items, _END) for _ in range(MOST))
        while (item := coming.popleft().result()) is not _END:
            coming.append(pool.submit(next, items, _END))
            yield item


class Behind:
    """Calls functions one after the other in a thread; `call` waits while more than MOST are pending.

    with Behind() as behind:
        behind.call(write, frame)

    All calls are done when the block ends, also if it ends by an exception. After a call has raised an exception, no
    other call starts; the next `call`, or the end of the block, raises it.
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
