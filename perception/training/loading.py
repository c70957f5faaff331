"""Loading with worker processes that use OpenCV."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cv2
from torch.utils.data import DataLoader


def loaded(loader: DataLoader[Any]) -> Iterator[Any]:
    """What a loader loads. A forked worker would deadlock on OpenCV's thread pool, which a fork does not copy."""
    threads = cv2.getNumThreads()
    if loader.num_workers:
        cv2.setNumThreads(1)
    try:
        yield from loader
    finally:
        cv2.setNumThreads(threads)
