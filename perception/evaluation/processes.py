"""Predictions by several processes, each with a predictor and a core of its own."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any

import cv2

from perception.datasets.keyframes import Keyframes
from perception.errors import InputError
from perception.evaluation.predictions import Predicted, Predictor, Reader, predictions
from perception.frame import Frame, Prediction
from perception.sensors.inputs import InputSpec

ATTEMPTS = 3  # processes that may die of a keyframe
AHEAD = 4  # keyframes of each process that are predicted before they are needed
Opened = Callable[[], tuple[Predictor, InputSpec, Keyframes]]


class Processes:
    """Predictions of keyframes by processes of one thread each, in the order of the keyframes.

    They do not depend on the number of processes. The keyframes of a process that died are predicted by another one.

    with Processes(opened, jobs) as predictor:
        evaluate(predictor, tables, ...)

    Args:
        opened: opens the predictor, its inputs and the drives, in each process; can be pickled.
        jobs: number of processes.
    """

    def __init__(self, opened: Opened, jobs: int) -> None:
        self._opened, self._jobs = opened, jobs
        self._pool = self._new_pool()

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def predictions(self, read: Reader, tokens: Sequence[str]) -> Predicted:
        """The predictions of keyframes; the frames are without their pictures.

        Raises:
            InputError: as the predictor or the drives do, or processes die of the same keyframe again and again.
        """
        left, deaths = deque(tokens), 0
        while left:
            try:
                for found in self._in_order(read, tuple(left)):
                    left.popleft()
                    deaths = 0
                    yield found
            except BrokenProcessPool:
                deaths += 1
                if deaths == ATTEMPTS:
                    raise InputError(
                        f"keyframe {left[0]}: {ATTEMPTS} processes died that predicted it or the next ones; if memory "
                        "is short, use fewer --jobs"
                    ) from None
                self._pool.shutdown()
                self._pool = self._new_pool()

    def _in_order(self, read: Reader, tokens: Sequence[str]) -> Predicted:
        futures = (self._pool.submit(_predict, read.change, token) for token in tokens)
        with _one_thread():  # the pool starts its processes when it is given work
            ahead = deque(islice(futures, AHEAD * self._jobs))
        while ahead:
            found: tuple[Frame, Prediction] = ahead.popleft().result()
            ahead.extend(islice(futures, 1))
            yield found

    def _new_pool(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")  # threads of torch and of engines do not survive a fork
        cores = context.Queue()
        for i in range(self._jobs):
            cores.put(i)
        return ProcessPoolExecutor(self._jobs, context, _start, (self._opened, cores))


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


_opened: tuple[Predictor, InputSpec, Keyframes]  # in a process of the pool


def _start(opened: Opened, cores: Any) -> None:
    global _opened  # noqa: PLW0603 - a pool hands nothing else to its calls
    cv2.setNumThreads(1)
    if hasattr(os, "sched_setaffinity"):  # engines start as many threads as there are cores
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {allowed[cores.get() % len(allowed)]})
    _opened = opened()


def _predict(change: Callable[[Frame], Frame] | None, token: str) -> tuple[Frame, Prediction]:
    predictor, spec, tables = _opened
    ((frame, prediction),) = predictions(predictor, Reader(tables, spec, change), [token])
    return replace(frame, cameras={}), prediction
