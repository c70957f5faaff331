"""Reads pickles of plain data and numpy arrays without calling anything that they name.

This is Python's own unpickler with an allow-list of globals: the few that numpy arrays need, replaced by functions of
this file, so that nothing is imported. States are given to what stands for numpy's objects alone, and are checked:
numpy itself takes a type with fields outside of its items, or changes the type that all arrays share. The unpickler is
the one in Python, because the one in C allocates a memo of any size that a damaged file states: 1 GB for ten bytes.

Format: `pickletools` of the standard library, protocols 2 to 5; arrays as numpy 1 (`numpy.core`) and 2 (`numpy._core`)
write them.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from perception.errors import InputError

_ALLOWED_DTYPES = re.compile(r"[biufSU]\d{1,6}")  # no objects, no structures
_MAX_BYTES = 1 << 32  # of a file
_MAX_DIMENSIONS = 32
_MAX_CODE_POINT = 0x10FFFF  # numpy does not check it when it converts to a str
_DAMAGE_ERRORS = (
    pickle.UnpicklingError, LookupError, EOFError, struct.error, TypeError, ValueError, ArithmeticError, AttributeError,
    MemoryError,
)  # fmt: skip


class Refused(ValueError):
    """A reason not to read a file."""


def read_plain(path: Path) -> Any:
    """The dicts, lists, tuples, numbers, text, bytes and arrays of a pickle; numpy scalars become Python numbers.

    Raises:
        InputError: the file cannot be read, is no pickle, is truncated or damaged, or contains anything else.
    """
    try:
        if (size := path.stat().st_size) > _MAX_BYTES:
            raise InputError(f"{path}: not read: it has {size >> 20} MiB, more than {_MAX_BYTES >> 20}")
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot read the file ({error.strerror})") from None
    return unpickled(content, path, PlainUnpickler)


def unpickled(content: bytes, path: Path, kind: type[PlainUnpickler]) -> Any:
    """What a pickle holds.

    Args:
        content: of the file, decompressed.
        path: of the file, for the error.
        kind: the unpickler, which says what is allowed.

    Raises:
        InputError: the content is no pickle, is truncated or damaged, or contains what is not allowed.
    """
    try:
        if not re.match(rb"\x80[\2-\5]", content):
            raise Refused("this is no pickle of protocol 2 to 5")
        unpickler = kind(content)
        value = unpickler.load()
        if unpickler.read(1) or unpickler.stack or unpickler.metastack:
            raise Refused("it ends too early: damaged")
        return value
    except Refused as error:
        reason = str(error)
    except _DAMAGE_ERRORS:
        reason = "damaged or truncated"
    raise InputError(f"{path}: not read: {reason}; nothing in it was run")


def size_of(shape: Any) -> int:
    """Number of elements of an array with a shape that a file states."""
    sizes = shape if type(shape) is tuple and len(shape) <= _MAX_DIMENSIONS else (-1,)
    if any(type(size) is not int or size < 0 for size in sizes):
        raise Refused("an array's shape is no short tuple of numbers: damaged")
    return math.prod(sizes)


class Inert:
    """Stands for an object of a file; its state is checked and kept, and nothing else happens."""

    def build(self, state: Any) -> None:
        raise NotImplementedError


class Dtype(Inert):
    """The dtype of an array of numbers or text. BUILD modifies it, and numpy's own is shared by all arrays."""

    def __init__(self, kind: Any, _align: Any = None, _copy: Any = None) -> None:
        if type(kind) is not str or not _ALLOWED_DTYPES.fullmatch(kind):
            shown = ascii(kind[:40]) if type(kind) is str else f"a {type(kind).__name__}"
            raise Refused(f"an array is of type {shown}; only numbers and text are read")
        self.dtype = np.dtype(kind)

    def build(self, state: Any) -> None:
        if type(state) is not tuple:
            raise Refused("an array's type has no tuple as state: damaged")
        _, order, subtype, names, fields, *_ = state
        if order not in ("<", ">", "|", "=") or (subtype, names, fields) != (None, None, None):
            raise Refused("an array's type has fields; only numbers and text are read")
        self.dtype = self.dtype.newbyteorder(order)


class PlainUnpickler(pickle._Unpickler):
    """Unpickles the content of a file; the file can call only the methods below and `Dtype`.

    Subclasses may allow more inert stand-ins in `allowed`.
    """

    read: Callable[[int], bytes]
    stack: list[Any]
    metastack: list[Any]

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content))
        self.allowed: dict[tuple[str, str], Any] = {
            ("numpy", "ndarray"): "ndarray",  # only used as an argument
            ("numpy", "dtype"): Dtype,
            ("_codecs", "encode"): self._encoded,
            ("__builtin__", "bytes"): lambda: b"",  # empty bytes in protocol 2
            ("collections", "OrderedDict"): lambda: {},
        }
        for core in ("numpy.core", "numpy._core"):
            self.allowed[f"{core}.multiarray", "_reconstruct"] = self._reconstruct
            self.allowed[f"{core}.multiarray", "scalar"] = self._scalar
            self.allowed[f"{core}.numeric", "_frombuffer"] = self._array

    def find_class(self, module: str, name: str) -> Any:
        replacement = self.allowed.get((module, name))
        if replacement is None:
            shown = ascii(f"{module[:40]}.{name[:40]}")
            raise Refused(f"it asks for {shown}, which plain data and numpy arrays do not need")
        return replacement

    def _encoded(self, text: Any, encoding: Any) -> bytes:
        """Bytes in protocol 2."""
        if type(text) is not str or encoding != "latin1":
            raise Refused("bytes in an unknown encoding: damaged")
        return text.encode("latin1")

    def _array(self, content: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
        array = self._reconstruct()
        self.fill(array, dtype, shape, type(order) is str and order == "F", content)
        return array

    def _scalar(self, dtype: Any, content: Any) -> Any:
        return self._array(content, dtype, (), "C").item()

    def _reconstruct(self, _class: Any = None, _shape: Any = None, _kind: Any = None) -> np.ndarray:
        """An empty array whose state follows; the file's class and shape are ignored."""
        return np.zeros(0, np.uint8)

    def fill(self, array: np.ndarray, dtype: Any, shape: Any, fortran: bool, content: Any) -> None:
        """Check the state of an array and set it."""
        if type(dtype) is not Dtype or type(content) is not bytes:
            raise Refused("an array without type or content: damaged")
        kind, count = dtype.dtype, size_of(shape)
        if count * kind.itemsize != len(content) or (count and not content):
            raise Refused(f"an array of shape {str(shape)[:40]} and type {kind} has {len(content)} bytes: truncated")
        if kind.kind == "U" and (np.frombuffer(content, kind.byteorder + "u4") > _MAX_CODE_POINT).any():
            raise Refused("an array's text is none: damaged")
        array.__setstate__((1, shape, kind, fortran, content))
        array.flags.writeable = False

    def _build(self) -> None:
        state, unbuilt = self.stack.pop(), self.stack[-1]
        if isinstance(unbuilt, Inert):
            unbuilt.build(state)
        elif type(unbuilt) is np.ndarray and type(state) is tuple:
            _, shape, dtype, fortran, content = state
            self.fill(unbuilt, dtype, shape, fortran is True, content)
        else:
            raise Refused("it gives a state to what has none: damaged")

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **pickle._Unpickler.dispatch,
        pickle.BUILD[0]: _build,
        # As bytes: a bytearray would be allocated at any size that a damaged file states.
        pickle.BYTEARRAY8[0]: pickle._Unpickler.dispatch[pickle.BINBYTES8[0]],
    }
