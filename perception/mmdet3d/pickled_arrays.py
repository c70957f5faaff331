"""What the few names that a pickle of numpy arrays uses stand for; none of them is ever looked up.

As numpy 1 (`numpy.core`) and 2 (`numpy._core`) write them, in protocols 2 to 5.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np

_DTYPE = re.compile(r"[biufSU]\d{1,6}")  # numbers and text: no objects, no structures
_MOST_DIMENSIONS = 32


class Refused(ValueError):
    """What is wrong with a file."""


def _shown(value: Any) -> str:
    """A text of the file in an error; of other values the type alone, as lists that hold one another print for ever."""
    return ascii(value[:40]) if type(value) is str else f"a {type(value).__name__}"


class Unbuilt:
    """An array or a type whose state follows, and the places in the memo that wait for it."""

    def __init__(self, dtype: str | None = None) -> None:
        self.dtype = dtype  # None: an array
        self.places: list[int] = []


class Known:
    """A name that a file may use; what it names is never looked up, `make` gives the value that it stands for."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self.make = make


def array(content: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    """The read-only array of these bytes; nothing is allocated that the file does not hold."""
    if not isinstance(dtype, np.dtype) or type(content) is not bytes or order not in ("C", "F"):
        raise Refused("an array without type or content: damaged")
    sizes = shape if type(shape) is tuple and len(shape) <= _MOST_DIMENSIONS else (-1,)
    if any(type(size) is not int or size < 0 for size in sizes):
        raise Refused("an array's shape is no short tuple of numbers: damaged")
    count = math.prod(sizes)
    if count * dtype.itemsize != len(content) or (count and not content):
        raise Refused(f"an array of shape {str(shape)[:40]} and type {dtype} has {len(content)} bytes: truncated")
    if not content:
        return np.zeros(shape, dtype)
    return np.frombuffer(content, dtype).reshape(shape, order=order)


def _array_to_build(kind: Any, *_: Any) -> Unbuilt:
    if kind is not _NDARRAY:
        raise Refused("an array of a class of its own; only numpy's are read")
    return Unbuilt()


def _dtype(kind: Any, *_: Any) -> Unbuilt:
    if type(kind) is not str or not _DTYPE.fullmatch(kind):
        raise Refused(f"an array is of type {_shown(kind)}; only numbers and text are read")
    return Unbuilt(kind)


def _scalar(dtype: Any, content: Any) -> Any:
    return array(content, dtype, (), "C").item()


def _encoded(text: Any, encoding: Any) -> bytes:
    """Bytes as protocol 2 has them."""
    if type(text) is not str or encoding != "latin1":
        raise Refused("bytes in an unknown encoding: damaged")
    return text.encode("latin1")


_NDARRAY = Known(_array_to_build)  # only ever an argument
KNOWN = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): Known(_dtype),
    ("_codecs", "encode"): Known(_encoded),
    ("__builtin__", "bytes"): Known(lambda: b""),  # no bytes, as protocol 2 has them
    ("collections", "OrderedDict"): Known(lambda: {}),
}
for _core in ("numpy.core", "numpy._core"):
    KNOWN[f"{_core}.multiarray", "_reconstruct"] = Known(_array_to_build)
    KNOWN[f"{_core}.multiarray", "scalar"] = Known(_scalar)
    KNOWN[f"{_core}.numeric", "_frombuffer"] = Known(array)
