"""Loading with worker processes that use OpenCV."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cv2
from torch.utils.data import DataLoader

from perception.errors import InputError


def iterate(loader: DataLoader[Any]) -> Iterator[Any]:
    """The items of a loader; raises the InputError of a worker without its traceback."""
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
