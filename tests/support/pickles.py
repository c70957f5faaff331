"""Hostile pickles, and how they must be refused."""

import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perception.errors import InputError


class Hostile:
    """Pickled, it calls what it is given; of three arguments the last is what the result's state becomes."""

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...], *state: Any) -> None:
        self.call = (function, arguments, *state)

    def __reduce__(self) -> Any:
        return self.call


def system() -> Hostile:
    return Hostile(os.system, (f"touch {os.environ['CANARY']}",))


DEEP = b")" + b"q\x00h\x00\x86" * 60  # a pair of pairs of pairs ...: 2^60 to print or to hash


def assert_refused(read: Callable[[bytes, Path], object], content: bytes, folder: Path, says: str) -> None:
    """Reading the content in the folder is refused in one short line, runs nothing and holds little memory."""
    canary = folder / "canary"
    canary.unlink(missing_ok=True)  # making the content may have called what reading it must not
    tracemalloc.start()
    with pytest.raises(InputError, match=says) as caught:
        read(content, folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    line = str(caught.value)
    assert peak < (1 << 20) + 100 * len(content)
    assert not canary.exists()
    assert "\n" not in line
    assert len(line) < 300 + len(str(folder))
    assert line.startswith(str(folder))
