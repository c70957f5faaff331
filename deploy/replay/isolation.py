"""Context managers that keep the garbage collector and other threads from disturbing latencies."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager

import cv2


@contextmanager
def frozen_objects() -> Iterator[None]:
    """Exclude existing objects, such as tables and the bundle, from garbage collection."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def single_core() -> Iterator[None]:
    """Pin this thread to one core, if the system supports it, and let OpenCV use no other thread.

    The engine keeps its threads; those of ONNX Runtime avoid the first core by themselves.
    """
    threads, cores = cv2.getNumThreads(), os.sched_getaffinity(0) if hasattr(os, "sched_setaffinity") else None
    cv2.setNumThreads(1)
    try:
        if cores:
            os.sched_setaffinity(0, {min(cores)})
        with frozen_objects():
            yield
    finally:
        if cores:
            os.sched_setaffinity(0, cores)
        cv2.setNumThreads(threads)
