"""Calls in several processes, each with a state and a core of its own: on this machine, or on a Ray cluster.

What a dead process worked on is done again by another one. Pools of libraries lose it, or do not say which item it was.
Every machine of a cluster needs this package in the same version, and the same paths.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from functools import cache, partial
from itertools import count
from multiprocessing.pool import ExceptionWithTraceback  # type: ignore[attr-defined]
from typing import Any, Generic, TypeVar

import cv2

from perception.errors import InputError, install_hint

ATTEMPTS = 3  # processes that may die of an item
AHEAD = 4  # items of each process that `in_order` computes before they are needed
REACHED_WITHIN = 10.0  # s

State = TypeVar("State")
Item = TypeVar("Item")
Result = TypeVar("Result")
Call = Callable[[Any, Any], Any]


@contextmanager
def open_pool(
    make_state: Callable[[], State], jobs: int, ray: str | None = None, died: Callable[[str], None] = lambda item: None
) -> Iterator[Pool[State]]:
    """Workers: so many processes of this machine, or one for each processor of a Ray cluster.

    Args:
        make_state: is called by each worker when it starts; can be pickled.
        ray: address of the cluster, as `ray.init` takes it: auto, HOST:6379, ray://HOST:10001; local: a cluster of this
            machine alone. None: none.
        died: is called after the death of a worker with the name of the item that it worked on.
    """
    if ray is None:
        with Pool[State](partial(_Process, make_state), jobs, died) as pool:
            yield pool
        return
    cluster = _connect(ray)
    try:
        start, processors = partial(_Remote, cluster, cluster.put(make_state)), cluster.cluster_resources().get("CPU")
        with Pool[State](start, int(processors or 1), died) as pool:
            yield pool
    finally:
        cluster.shutdown()


class WorkerDiedError(Exception):
    """A worker has died, and why."""


class Pool(Generic[State]):
    """Workers with a state each, while it is entered as a context."""

    def __init__(self, start: Callable[[int], _Process | _Remote], size: int, died: Callable[[str], None]) -> None:
        self._start, self._size, self._died = start, size, died
        self._lock, self._closed = threading.Lock(), False
        self._workers: dict[int, _Process | _Remote] = {}  # by the number of the thread that waits for it
        self._number, numbers = threading.local(), count()
        self._threads = ThreadPoolExecutor(size, initializer=lambda: setattr(self._number, "value", next(numbers)))

    def __enter__(self) -> Pool[State]:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._lock:
            self._closed = True
            for worker in self._workers.values() if kind is not None else ():
                worker.kill()
        self._threads.shutdown(cancel_futures=True)
        for worker in self._workers.values():
            worker.close()

    def in_order(
        self, call: Callable[[State, Item], Result], items: Sequence[Item], named: Callable[[Item], str] = str
    ) -> Iterator[Result]:
        """The results of the items in their order; as `run` otherwise."""
        coming = deque[Future[Result]]()
        for item in items:
            if len(coming) == AHEAD * self._size:
                yield coming.popleft().result()
            coming.append(self._threads.submit(self._attempt, call, item, named(item)))
        while coming:
            yield coming.popleft().result()

    def run(
        self, call: Callable[[State, Item], Result], items: Sequence[Item], named: Callable[[Item], str] = str
    ) -> Iterator[tuple[int, Result]]:
        """Index and result of each item, as they are completed.

        Args:
            call: with the state of a worker and an item; can be pickled, as its result.

        Raises:
            InputError: ATTEMPTS workers died of the same item.
            Exception: as `call` or `make_state` do.
        """
        indices = {self._threads.submit(self._attempt, call, item, named(item)): i for i, item in enumerate(items)}
        for future in as_completed(indices):
            yield indices[future], future.result()

    def _attempt(self, call: Call, item: Any, name: str) -> Any:
        """The result of a call; after the death of a worker, by another one."""
        number = self._number.value
        for _ in range(ATTEMPTS):
            with self._lock:
                if self._closed:
                    raise CancelledError
                worker = self._workers[number] = self._workers.get(number) or self._start(number)
            try:
                result = worker.call(call, item)
            except WorkerDiedError as error:
                reason = str(error)
                with self._lock:
                    self._workers.pop(number).close()
                if not self._closed:
                    self._died(name)
            else:
                if isinstance(result, Exception):
                    raise result
                return result
        advice = "if memory is short, use fewer --jobs; machines of a cluster need the same version"
        raise InputError(f"{name}: {ATTEMPTS} workers died of it ({reason}); {advice}")


class _Process:
    def __init__(self, make_state: Callable[[], Any], number: int) -> None:
        context = multiprocessing.get_context("spawn")  # threads of torch and of engines do not survive a fork
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make_state, number))
        before = os.environ.get("OMP_NUM_THREADS")
        os.environ["OMP_NUM_THREADS"] = "1"
        self._process.start()
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
        theirs.close()

    def call(self, call: Call, item: Any) -> Any:
        try:
            self._pipe.send((call, item))
            return self._pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            raise WorkerDiedError(f"exit code {self._process.exitcode}") from None

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        self._pipe.close()
        self._process.join()


def _serve(pipe: Any, make_state: Callable[[], Any], number: int) -> None:
    """Run in a process; it ends with its parent alone, and by it."""

    def end_with_parent() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the parent ends its processes
    threading.Thread(target=end_with_parent, daemon=True).start()
    actor = _Actor(make_state, number)
    with suppress(EOFError):  # closed
        while True:
            pipe.send(actor.call(*pipe.recv()))


class _Actor:
    """A state in the process of a worker; Ray shows the names of its methods."""

    def __init__(self, make_state: Callable[[], Any], number: int) -> None:
        cv2.setNumThreads(1)
        if hasattr(os, "sched_setaffinity"):  # engines start as many threads as there are cores
            allowed = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(0, {allowed[number % len(allowed)]})
        self._state = cache(make_state)

    def call(self, call: Call, item: Any) -> Any:
        try:
            return call(self._state(), item)
        except InputError as error:
            return error
        except Exception as error:
            return ExceptionWithTraceback(error, error.__traceback__)


def _connect(address: str) -> Any:
    try:
        import ray
    except ImportError:
        raise InputError(f"--ray: Ray is not installed; {install_hint('scale')}") from None
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    try:
        if colon:  # Ray would try for minutes
            socket.create_connection((host, int(port)), timeout=REACHED_WITHIN).close()
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, ignore_reinit_error=True)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"--ray {address}: cannot connect to the cluster ({reason}); start it first") from None
    return ray


class _Remote:
    def __init__(self, ray: Any, make_state: Any, number: int) -> None:
        environment = {"env_vars": {"OMP_NUM_THREADS": "1"}}
        self._ray = ray
        self._actor = ray.remote(num_cpus=1, runtime_env=environment)(_Actor).remote(make_state, number)

    def call(self, call: Call, item: Any) -> Any:
        try:
            return self._ray.get(self._actor.call.remote(call, item))
        except self._ray.exceptions.RayActorError as error:
            raise WorkerDiedError(str(error).strip().rpartition("\n")[2].strip()) from None

    def kill(self) -> None:
        self._ray.kill(self._actor)

    close = kill


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
