"""Hostile pickles."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any


class Hostile:
    """Pickled, it calls what it is given; of three arguments the last is what the result's state becomes."""

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...], *state: Any) -> None:
        self.call = (function, arguments, *state)

    def __reduce__(self) -> Any:
        return self.call


def system() -> Hostile:
    return Hostile(os.system, (f"touch {os.environ['CANARY']}",))


DEEP = b")" + b"q\x00h\x00\x86" * 60  # a pair of pairs of pairs ...: 2^60 to print or to hash
