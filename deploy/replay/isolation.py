"""Blocks in which neither the garbage collector nor other threads disturb the main thread."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager

import cv2


@contextmanager
def uncollected() -> Iterator[None]:
    """A block in which the garbage collector leaves out existing objects, such as tables and the bundle."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def undisturbed() -> Iterator[None]:
    """A block in which this thread stays on one core, where the system can do that, and OpenCV starts no others.

    The engine keeps the threads that it has: those of ONNX Runtime stay off the first core by themselves.
    """
    threads, cores = cv2.getNumThreads(), os.sched_getaffinity(0) if hasattr(os, "sched_setaffinity") else None
    cv2.setNumThreads(1)
    try:
        if cores:
            os.sched_setaffinity(0, {min(cores)})
        with uncollected():
            yield
    finally:
        if cores:
            os.sched_setaffinity(0, cores)
        cv2.setNumThreads(threads)
