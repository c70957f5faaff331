"""How long the stages of a frame take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Write into `seconds` how long the block took, under the name of the stage."""
    start = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - start
