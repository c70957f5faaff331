"""Calls in several processes, each with a state and a core of its own. What a dead process worked on is done again."""

from __future__ import annotations

import heapq
import multiprocessing
import os
import signal
import threading
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import cv2

from perception.errors import InputError

ATTEMPTS = 3  # processes that may die of an item

State = TypeVar("State")
Item = TypeVar("Item")
Result = TypeVar("Result")


class Queue:
    """Which of `count` items wait for a worker, and which are completed.

    Args:
        window: items that may begin after the first one that is not completed; None: all.
    """

    def __init__(self, count: int, window: int | None) -> None:
        self._count, self._window = count, window
        self._waiting = list(range(count))  # a heap
        self._completed, self._first = set[int](), 0  # completed ones after the first that is not
        self._deaths = Counter[int]()

    def __len__(self) -> int:
        """Number of items that wait."""
        return len(self._waiting)

    @property
    def unfinished(self) -> bool:
        return self._first < self._count

    def take(self) -> int | None:
        """The first item that waits; None if there is none, or it may not begin yet."""
        if not self._waiting or (self._window is not None and self._waiting[0] - self._first >= self._window):
            return None
        return heapq.heappop(self._waiting)

    def complete(self, item: int) -> None:
        self._completed.add(item)
        while self._first in self._completed:
            self._completed.remove(self._first)
            self._first += 1

    def give_back(self, items: Iterable[int]) -> None:
        """Let items wait again."""
        for item in items:
            heapq.heappush(self._waiting, item)

    def is_fatal(self, item: int) -> bool:
        """Note that a worker died of an item; returns whether ATTEMPTS did."""
        self._deaths[item] += 1
        return self._deaths[item] == ATTEMPTS


class Pool(ABC, Generic[State]):
    """Workers with a state each, while it is entered as a context."""

    window = 1  # items that `in_order` lets begin after the first one that is not completed

    @abstractmethod
    def completed(
        self,
        call: Callable[[State, Item], Result],
        items: Sequence[Item],
        named: Callable[[Item], str] = str,
        window: int | None = None,
    ) -> Iterator[tuple[int, Result]]:
        """Index and result of each item, as they are completed.

        Args:
            call: with the state of a worker and an item; can be pickled, as its result.
            named: name of an item, for messages.
            window: items that may begin after the first one that is not completed; None: all.

        Raises:
            InputError: ATTEMPTS workers died of the same item.
            Exception: as `call` or what makes the state do.
        """

    def in_order(
        self, call: Callable[[State, Item], Result], items: Sequence[Item], named: Callable[[Item], str] = str
    ) -> Iterator[Result]:
        """The results of the items in their order; as `completed` otherwise."""
        found: dict[int, Result] = {}
        given = 0
        for i, result in self.completed(call, items, named, self.window):
            found[i] = result
            while given in found:
                yield found.pop(given)
                given += 1

    def __enter__(self) -> Pool[State]:
        return self

    @abstractmethod
    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None: ...


class Workers(Pool[State]):
    """Processes of one thread each.

    with Workers(opened, jobs) as workers:
        for result in workers.in_order(call, items): ...

    Args:
        opened: makes the state of a process when it starts; can be pickled.
        jobs: number of processes.
        ahead: items that wait in or run in a process.
        died: is called after the death of a process with the item that it worked on.
    """

    def __init__(
        self,
        opened: Callable[[], State],
        jobs: int,
        ahead: int = 1,
        died: Callable[[str], None] = lambda item: None,
    ) -> None:
        self._opened, self._ahead, self._died = opened, ahead, died
        self._processes = [_Process(opened, core) for core in range(jobs)]
        self.window = ahead * jobs

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for process in self._processes:
            process.close(at_once=kind is not None)

    def completed(
        self,
        call: Callable[[State, Item], Result],
        items: Sequence[Item],
        named: Callable[[Item], str] = str,
        window: int | None = None,
    ) -> Iterator[tuple[int, Result]]:
        queue = Queue(len(items), window)
        while queue.unfinished:
            for process in sorted(self._processes, key=lambda each: len(each.pending)):
                while len(process.pending) < self._ahead and (i := queue.take()) is not None:
                    process.submit(i, call, items[i])
            wait([process.pending[0][1] for process in self._processes if process.pending], None, FIRST_COMPLETED)
            for process in self._processes:
                while process.pending and process.pending[0][1].done():
                    i, future = process.pending[0]
                    try:
                        result = future.result()
                    except BrokenProcessPool:
                        self._died(named(items[i]))
                        if queue.is_fatal(i):
                            remedy = "if memory is short, use fewer --jobs"
                            raise InputError(f"{named(items[i])}: {ATTEMPTS} processes died of it; {remedy}") from None
                        queue.give_back(process.restart())
                        break
                    process.pending.popleft()
                    queue.complete(i)
                    yield i, result


class _Process:
    """One process, which is started again after its death.

    Attributes:
        pending: index and result of the items that it was given, in order.
    """

    def __init__(self, opened: Callable[[], Any], core: int) -> None:
        self._opened, self._core = opened, core
        self._start()

    def _start(self) -> None:
        self.pending = deque[tuple[int, Future[Any]]]()
        context = multiprocessing.get_context("spawn")  # threads of torch and of engines do not survive a fork
        self._pool = ProcessPoolExecutor(1, context, _start, (self._opened, self._core))
        others = multiprocessing.active_children()
        with _one_thread():  # the process starts with its first call
            self._pool.submit(os.getpid)
        self._children = [child for child in multiprocessing.active_children() if child not in others]

    def submit(self, index: int, call: Callable[[Any, Any], Any], item: Any) -> None:
        try:
            self.pending.append((index, self._pool.submit(_call, call, item)))
        except BrokenProcessPool as error:  # it died since the last call
            lost: Future[Any] = Future()
            lost.set_exception(error)
            self.pending.append((index, lost))

    def restart(self) -> list[int]:
        """Start a new process; returns the items that the old one was given."""
        lost = [i for i, _ in self.pending]
        self._pool.shutdown()
        self._start()
        return lost

    def close(self, at_once: bool) -> None:
        """End the process, `at_once` or after its item."""
        if at_once:
            for child in self._children:
                child.kill()
        self._pool.shutdown(cancel_futures=True)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Processes that start meanwhile compute with one thread."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


# In a process: its state, or why it has none.
_state: Any = None
_refused: InputError | None = None


def _start(opened: Callable[[], Any], core: int) -> None:
    global _state, _refused  # noqa: PLW0603 - a pool hands nothing else to its calls
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the parent ends its processes
    threading.Thread(target=_end_with_parent, daemon=True).start()
    cv2.setNumThreads(1)
    if hasattr(os, "sched_setaffinity"):  # engines start as many threads as there are cores
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {allowed[core % len(allowed)]})
    try:
        _state = opened()
    except InputError as error:
        _refused = error


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _call(call: Callable[[Any, Any], Any], item: Any) -> Any:
    if _refused is not None:
        raise _refused
    return call(_state, item)
