"""Calls on the machines of a Ray cluster, each worker with a state and a core of its own; otherwise as `Workers`.

Every machine needs this package in the same version, and the same paths: a shared disk or an object store.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2

from perception.errors import InputError
from perception.workers import ATTEMPTS, Item, Pool, Queue, Result, State

REACHED_WITHIN = 10.0  # s
WINDOW = 256  # items that `in_order` lets begin after the first one that is not completed
NEW_WORKERS = 5.0  # s between looks for processors that have joined the cluster


class RayWorkers(Pool[State]):
    """Workers on all processors of a cluster; those of machines that join later work, too.

    with RayWorkers(opened, "auto") as workers:
        for i, result in workers.completed(call, items): ...

    Args:
        opened: makes the state of a worker when it starts; can be pickled.
        address: of the cluster, as `ray.init` takes it: auto, HOST:6379, ray://HOST:10001; local: a cluster of this
            machine alone.
        died: is called after the death of a worker with the item that it worked on.

    Raises:
        InputError: Ray is not installed, or there is no such cluster.
    """

    def __init__(
        self, opened: Callable[[], State], address: str, died: Callable[[str], None] = lambda item: None
    ) -> None:
        try:
            import ray
        except ImportError:
            raise InputError("--ray: Ray is not installed; pip install 'tessera-perception[scale]'") from None
        try:
            _require_reachable(address)
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, ignore_reinit_error=True)
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            raise InputError(f"--ray {address}: cannot connect to the cluster ({reason}); start it first") from None
        self._ray, self._died = ray, died
        environment = {"env_vars": {"OMP_NUM_THREADS": "1"}}
        self._actor: Any = ray.remote(num_cpus=1, runtime_env=environment)(_Actor)
        self._opened = ray.put(opened)
        self._started = self._failed = 0
        self._busy: dict[Any, tuple[Any, int | None]] = {}  # what is awaited -> worker and item; None: it starts
        self.window = WINDOW

    def __exit__(self, *_: object) -> None:
        self._ray.shutdown()

    def completed(
        self,
        call: Callable[[State, Item], Result],
        items: Sequence[Item],
        named: Callable[[Item], str] = str,
        window: int | None = None,
    ) -> Iterator[tuple[int, Result]]:
        queue, idle = Queue(len(items), window), list[Any]()
        while queue.unfinished:
            self._start_more(idle, len(queue))
            while idle and (i := queue.take()) is not None:
                worker = idle.pop()
                self._busy[worker.call.remote(call, items[i])] = worker, i
            ready, _ = self._ray.wait(list(self._busy), timeout=NEW_WORKERS)
            for each in ready:
                worker, item = self._busy.pop(each)
                try:
                    result = self._ray.get(each)
                except self._ray.exceptions.RayTaskError as error:
                    raise error.cause from None
                except self._ray.exceptions.RayActorError as error:
                    if item is None:
                        self._not_started(error)
                        continue
                    name = named(items[item])
                    self._died(name)
                    if queue.is_fatal(item):
                        remedy = "look for its machine's lack of memory"
                        raise InputError(f"{name}: {ATTEMPTS} workers died of it; {remedy}") from None
                    queue.give_back([item])
                    continue
                self._failed = 0
                idle.append(worker)
                if item is not None:
                    queue.complete(item)
                    yield item, result

    def _not_started(self, error: Exception) -> None:
        """Note that a worker died before its first item."""
        self._failed += 1
        if self._failed == ATTEMPTS:
            reason = str(error).strip().rpartition("\n")[2].strip()
            raise InputError(f"--ray: workers die when they start ({reason}); install the same version on all machines")

    def _start_more(self, idle: Sequence[Any], wanted: int) -> None:
        """Start workers on processors without one, as long as there are items for them."""
        processors = int(self._ray.cluster_resources().get("CPU", 0))
        starting = sum(item is None for _, item in self._busy.values())
        for _ in range(min(processors - len(self._busy) - len(idle), wanted - starting - len(idle))):
            worker = self._actor.remote(self._opened, self._started)
            self._started += 1
            self._busy[worker.ready.remote()] = worker, None


def _require_reachable(address: str) -> None:
    """Raise OSError or ValueError if nothing listens at HOST:PORT; Ray would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon:
        socket.create_connection((host, int(port)), timeout=REACHED_WITHIN).close()


class _Actor:
    """A worker's process."""

    def __init__(self, opened: Callable[[], Any], number: int) -> None:
        cv2.setNumThreads(1)
        if hasattr(os, "sched_setaffinity"):  # engines start as many threads as there are cores
            allowed = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(0, {allowed[number % len(allowed)]})
        self._refused: InputError | None = None
        try:
            self._state = opened()
        except InputError as error:
            self._refused = error

    def ready(self) -> None:
        """Return when the worker has started; InputError if its state cannot be made."""
        if self._refused is not None:
            raise self._refused

    def call(self, call: Callable[[Any, Any], Any], item: Any) -> Any:
        return call(self._state, item)
