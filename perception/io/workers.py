"""Calls in several processes, each with a state and a core of its own: on this machine, or on a Ray cluster.

What a dead process worked on is done again by another one. Pools of libraries lose it, or do not say which item it was,
so each worker is a pool of one process, or an actor. Every machine of a cluster needs this package in the same version,
and the same paths: a shared disk or an object store.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from heapq import heappop, heappush
from typing import Any, Generic, NamedTuple, TypeVar

import cv2

from perception.errors import InputError

ATTEMPTS = 3  # processes that may die of an item
START = -1  # stands for the start of a worker among the indices of its items
CLUSTER_WINDOW = 256  # items of a cluster that `in_order` lets begin after the first one that is not completed
NEW_WORKERS = 5.0  # s between looks for processors that have joined a cluster
REACHED_WITHIN = 10.0  # s

State = TypeVar("State")
Item = TypeVar("Item")
Result = TypeVar("Result")
Call = Callable[[Any, Any], Any]


def open_pool(
    make_state: Callable[[], State],
    jobs: int,
    ray: str | None = None,
    ahead: int = 1,
    died: Callable[[str], None] = lambda item: None,
) -> Pool[State]:
    """Workers: so many processes of this machine, or all processors of a Ray cluster, also those that join it later.

    with open_pool(make_state, jobs) as workers:
        for result in workers.in_order(call, items): ...

    Args:
        make_state: is called by each worker when it starts; can be pickled.
        jobs: number of processes.
        ray: address of the cluster, as `ray.init` takes it: auto, HOST:6379, ray://HOST:10001; local: a cluster of this
            machine alone. None: none.
        ahead: items that wait in or run in a worker.
        died: is called after the death of a worker with the name of the item that it worked on.

    Raises:
        InputError: Ray is not installed, or there is no such cluster.
    """
    backend = _processes(make_state, jobs, ahead) if ray is None else _cluster(make_state, ray)
    return Pool(backend, ahead, died)


@dataclass(eq=False)
class Worker:
    """A process. Its results are values, or an InputError that was raised there.

    Attributes:
        number: different from those of all workers that live at the same time.
        pending: results of its start and its items by index, in order, until they are taken.
        submit: a call and an item.
        close: ends the process; True: at once, False: after its item.
    """

    number: int
    pending: dict[int, Future[Any]]
    submit: Callable[[Call, Any], Future[Any]]
    close: Callable[[bool], None]

    @property
    def first(self) -> tuple[int, Future[Any]]:
        return next(iter(self.pending.items()))


class Backend(NamedTuple):
    """Where workers run.

    Attributes:
        start: a worker with a number.
        limit: number of workers that there can be now.
        window: items that `in_order` lets begin after the first one that is not completed.
        death: what a result raises if the worker died before.
        advice: against deaths, for messages.
        close: is called in the end.
    """

    start: Callable[[int], Worker]
    limit: Callable[[], int]
    window: int
    death: type[Exception]
    advice: str
    close: Callable[[], None] = lambda: None


class Pool(Generic[State]):
    """Workers with a state each, while it is entered as a context."""

    def __init__(self, backend: Backend, ahead: int, died: Callable[[str], None]) -> None:
        self._backend, self._ahead, self._died = backend, ahead, died
        self._workers = list[Worker]()

    def __enter__(self) -> Pool[State]:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for worker in self._workers:
            worker.close(kind is not None)
        self._backend.close()

    def in_order(
        self, call: Callable[[State, Item], Result], items: Sequence[Item], named: Callable[[Item], str] = str
    ) -> Iterator[Result]:
        """The results of the items in their order; as `run` otherwise."""
        found: dict[int, Result] = {}
        given = 0
        for i, result in self.run(call, items, named, self._backend.window):
            found[i] = result
            while given in found:
                yield found.pop(given)
                given += 1

    def run(
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
            InputError: ATTEMPTS workers died of the same item, or when they started.
            Exception: as `call` or `make_state` do.
        """
        waiting, deaths = list(range(len(items))), Counter[int]()  # `waiting` is a heap
        while unfinished := waiting[:1] + [i for worker in self._workers for i in worker.pending if i != START]:
            self._start_more(len(waiting))
            end = min(unfinished) + (window or len(items))
            for worker in sorted(self._workers, key=lambda each: len(each.pending)):
                free = 0 if START in worker.pending else self._ahead - len(worker.pending)
                while free > 0 and waiting and waiting[0] < end:
                    i = heappop(waiting)
                    worker.pending[i] = worker.submit(call, items[i])
                    free -= 1
            wait([each.first[1] for each in self._workers if each.pending], NEW_WORKERS, FIRST_COMPLETED)
            for worker in self._workers.copy():
                while worker.pending and worker.first[1].done():
                    i, future = worker.first
                    try:
                        result = future.result()
                    except self._backend.death as error:
                        deaths[i] += 1
                        self._bury(worker, None if i == START else named(items[i]), error, deaths[i])
                        for lost in worker.pending.keys() - {START}:
                            heappush(waiting, lost)
                        break
                    if isinstance(result, InputError):
                        raise result
                    del worker.pending[i]
                    deaths[START] = 0
                    if i != START:
                        yield i, result

    def _start_more(self, waiting: int) -> None:
        """Start workers as long as there can be more, and items for them."""
        idle = sum(not each.pending or START in each.pending for each in self._workers)
        for _ in range(min(self._backend.limit() - len(self._workers), waiting - idle)):
            taken = {each.number for each in self._workers}
            self._workers.append(self._backend.start(min({*range(len(taken) + 1)} - taken)))

    def _bury(self, worker: Worker, item: str | None, error: Exception, deaths: int) -> None:
        """Remove a dead worker; InputError if its item (None: its start) has had ATTEMPTS deaths."""
        self._workers.remove(worker)
        worker.close(True)
        if item is not None:
            self._died(item)
        if deaths == ATTEMPTS:
            reason = str(error).strip().rpartition("\n")[2].strip()
            what = f"workers die when they start ({reason})" if item is None else f"{item}: {deaths} workers died of it"
            raise InputError(f"{what}; {self._backend.advice}") from None


# ----- processes of this machine -----


def _processes(make_state: Callable[[], Any], jobs: int, ahead: int) -> Backend:
    start, advice = partial(_process, make_state), "if memory is short, use fewer --jobs"
    return Backend(start, lambda: jobs, ahead * jobs, BrokenProcessPool, advice)


def _process(make_state: Callable[[], Any], number: int) -> Worker:
    context = multiprocessing.get_context("spawn")  # threads of torch and of engines do not survive a fork
    pool = ProcessPoolExecutor(1, context, _guard)
    others = multiprocessing.active_children()
    with _one_thread():  # the process starts with its first call
        begun = pool.submit(_begin, make_state, number)
    children = [child for child in multiprocessing.active_children() if child not in others]

    def submit(call: Call, item: Any) -> Future[Any]:
        try:
            return pool.submit(_call, call, item)
        except BrokenProcessPool as error:  # it died since the last call
            lost: Future[Any] = Future()
            lost.set_exception(error)
            return lost

    def close(at_once: bool) -> None:
        for child in children if at_once else ():
            child.kill()
        pool.shutdown(cancel_futures=True)

    return Worker(number, {START: begun}, submit, close)


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


def _guard() -> None:
    """Let the process end with its parent alone, and by it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the parent ends its processes
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


# ----- in the process of a worker -----

_state: Any = None


def _begin(make_state: Callable[[], Any], number: int) -> InputError | None:
    """Take a core, and make the state."""
    global _state  # noqa: PLW0603 - a pool hands nothing else to its calls
    cv2.setNumThreads(1)
    if hasattr(os, "sched_setaffinity"):  # engines start as many threads as there are cores
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {allowed[number % len(allowed)]})
    try:
        _state = make_state()
    except InputError as error:
        return error
    return None


def _call(call: Call, item: Any) -> Any:
    try:
        return call(_state, item)
    except InputError as error:
        return error


# ----- a Ray cluster -----


def _cluster(make_state: Callable[[], Any], address: str) -> Backend:
    try:
        import ray
        from ray.exceptions import RayActorError
    except ImportError:
        raise InputError("--ray: Ray is not installed; pip install 'tessera-perception[scale]'") from None
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    try:
        if colon:  # Ray would try for minutes
            socket.create_connection((host, int(port)), timeout=REACHED_WITHIN).close()
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, ignore_reinit_error=True)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"--ray {address}: cannot connect to the cluster ({reason}); start it first") from None
    environment = {"env_vars": {"OMP_NUM_THREADS": "1"}}
    actors, given = ray.remote(num_cpus=1, runtime_env=environment)(_Actor), ray.put(make_state)

    def start(number: int) -> Worker:
        actor: Any = actors.remote(given, number)  # Ray ends its process when nobody holds it any more
        submit = lambda call, item: actor.call.remote(call, item).future()  # noqa: E731
        return Worker(number, {START: actor.ready.remote().future()}, submit, lambda at_once: None)

    return Backend(
        start,
        lambda: max(1, int(ray.cluster_resources().get("CPU", 0))),  # the first machine may join later
        CLUSTER_WINDOW,
        RayActorError,
        "look for lack of memory, and install the same version on all machines",
        ray.shutdown,
    )


class _Actor:
    """A worker's process; Ray shows the names of its methods."""

    def __init__(self, make_state: Callable[[], Any], number: int) -> None:
        self._refused = _begin(make_state, number)

    def ready(self) -> InputError | None:
        return self._refused

    def call(self, call: Call, item: Any) -> Any:
        return _call(call, item)


def iterate(loader: Any) -> Iterator[Any]:
    """The items of a DataLoader of torch; raises the InputError of a worker without its traceback."""
    threads = cv2.getNumThreads()
    if loader.num_workers:
        # A forked worker would deadlock on OpenCV's thread pool, which a fork does not copy.
        cv2.setNumThreads(1)
    try:
        yield from loader
    except InputError as error:
        raise InputError(str(error).rstrip().rpartition("InputError: ")[2]) from None
    finally:
        cv2.setNumThreads(threads)
