"""Reads foreign pickles without running code: plain data, arrays, and data frames of pandas.

This is Python's own unpickler with an allow-list of globals: the few that numpy arrays and tables need, replaced by
functions of this file, so that nothing is imported or called that a file names. States are given to stand-ins for the
objects of numpy and pandas, and are checked: numpy itself takes a type with fields outside of its items, or changes the
type that all arrays share. The unpickler is the one in Python, because the one in C allocates a memo of any size that a
damaged file states.

Formats: `pickletools` of the standard library, protocols 2 to 5; arrays as numpy 1 (`numpy.core`) and 2 (`numpy._core`)
write them; tables by `DataFrame.to_pickle` of pandas before 1.3, with gzip, whose blocks of columns are in
`BlockManager.__getstate__`, under "0.14.1".
"""

from __future__ import annotations

import io
import math
import pickle
import re
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from perception.errors import InputError

_ALLOWED_DTYPES = re.compile(r"[biufSU]\d{1,6}")  # no objects, no structures
_MAX_BYTES = 1 << 32  # of a file
_MAX_DIMENSIONS = 32
_MAX_CODE_POINT = 0x10FFFF  # numpy does not check it when it converts to a str
_MAX_FRAME_BYTES = 1 << 28  # of a decompressed table; gzip can hold a thousand times its size
_GZIP = 16 + zlib.MAX_WBITS
_KINDS = {"f": "numbers", "iu": "whole numbers", "O": "text"}
_PLAIN = (str, float, int, bool, type(None))
_DAMAGE_ERRORS = (
    pickle.UnpicklingError, LookupError, EOFError, struct.error, TypeError, ValueError, ArithmeticError, AttributeError,
    MemoryError,
)  # fmt: skip


class Refused(ValueError):
    """A reason not to read a file."""


def read_plain(path: Path) -> Any:
    """The dicts, lists, tuples, numbers, text, bytes and arrays of a pickle; numpy scalars become Python numbers."""
    try:
        if (size := path.stat().st_size) > _MAX_BYTES:
            raise InputError(f"{path}: not read: it has {size >> 20} MiB, more than {_MAX_BYTES >> 20}")
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot read the file ({error.strerror})") from None
    return unpickle(content, path, PlainUnpickler)


def unpickle(content: bytes, path: Path, kind: type[PlainUnpickler]) -> Any:
    """The value in a decompressed pickle of what the unpickler allows."""
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
    """Stands for an object of a file; its state is kept, and nothing else happens."""

    state: Any = None

    def build(self, state: Any) -> None:
        self.state = state


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


def _encode(text: Any, encoding: Any) -> bytes:
    """Bytes in protocol 2."""
    if type(text) is not str or encoding != "latin1":
        raise Refused("bytes in an unknown encoding: damaged")
    return text.encode("latin1")


def _reconstruct(_class: Any = None, _shape: Any = None, _kind: Any = None) -> np.ndarray:
    """An empty array whose state follows; the file's class and shape are ignored."""
    return np.zeros(0, np.uint8)


class PlainUnpickler(pickle._Unpickler):
    """Unpickles the content of a file; the file can call only what `allowed` has."""

    read: Callable[[int], bytes]
    stack: list[Any]
    metastack: list[Any]

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content))
        self.allowed: dict[tuple[str, str], Any] = {
            ("numpy", "ndarray"): "ndarray",  # only used as an argument
            ("numpy", "dtype"): Dtype,
            ("_codecs", "encode"): _encode,
            ("__builtin__", "bytes"): lambda: b"",  # empty bytes in protocol 2
            ("collections", "OrderedDict"): lambda: {},
        }
        for core in ("numpy.core", "numpy._core"):
            self.allowed[f"{core}.multiarray", "_reconstruct"] = _reconstruct
            self.allowed[f"{core}.multiarray", "scalar"] = lambda dtype, content: self._array(content, dtype).item()
            self.allowed[f"{core}.numeric", "_frombuffer"] = self._array

    def find_class(self, module: str, name: str) -> Any:
        replacement = self.allowed.get((module, name))
        if replacement is None:
            shown = ascii(f"{module[:40]}.{name[:40]}")
            raise Refused(f"it contains {shown}, which plain data and numpy arrays do not need")
        return replacement

    def _array(self, content: Any, dtype: Any, shape: Any = (), order: Any = "C") -> np.ndarray:
        array = _reconstruct()
        self.fill(array, dtype, shape, type(order) is str and order == "F", content)
        return array

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


def read_table(path: Path, columns: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Columns (N,) of a table, read-only.

    Args:
        columns: name -> what it holds: 'f' finite numbers, 'iu' whole ones, 'O' text.

    Raises:
        FileNotFoundError: there is no such file.
    """
    found = unpickle(_decompress(path), path, _TableUnpickler)
    for name, kinds in columns.items():
        if name not in found:
            raise InputError(f"{path}: has no column {name!r}; it has {', '.join(found)}")
        column = found[name]
        if column.dtype.kind not in kinds or (kinds == "O" and any(type(value) is not str for value in column)):
            raise InputError(f"{path}: column {name!r} holds something else than {_KINDS[kinds]} ({column.dtype})")
        if kinds == "f" and not np.isfinite(column).all():
            raise InputError(f"{path}: column {name!r} holds NaN or infinity; copy the file again or delete it")
    return {name: found[name] for name in columns}


def _decompress(path: Path) -> bytes:
    try:
        stream = zlib.decompressobj(_GZIP)
        content = stream.decompress(path.read_bytes(), _MAX_FRAME_BYTES)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot read the file ({error.strerror})") from None
    except zlib.error as error:
        raise InputError(f"{path}: not gzip, or damaged ({error})") from None
    if stream.unconsumed_tail:
        raise InputError(f"{path}: not read: it holds more than {_MAX_FRAME_BYTES >> 20} MiB, no table of a frame does")
    if not stream.eof:
        raise InputError(f"{path}: truncated; copy the file again")
    return content


class _ObjectType(Inert):
    """The dtype of an array of text or mixed values; its state is always the same."""


class _Manager(Inert):
    """pandas' BlockManager."""


class _DataFrame(Inert):
    """pandas' DataFrame."""


def _columns(frame: Any) -> dict[str, np.ndarray]:
    """The columns by name, from the states of a table and its blocks."""
    manager = frame.state["_data"] if type(frame) is _DataFrame else None
    if type(manager) is not _Manager:
        raise Refused("this is no table")
    axes, blocks = (manager.state[3]["0.14.1"][key] for key in ("axes", "blocks"))
    names, columns, count = axes[0], dict[str, np.ndarray](), 0
    if type(names) is not np.ndarray or names.ndim != 1 or any(type(name) is not str for name in names):
        raise Refused("its columns have no names: damaged")
    for block in blocks:
        values, places = block["values"], block["mgr_locs"]
        if type(values) is not np.ndarray or values.ndim != 2 or type(places) not in (slice, np.ndarray):
            raise Refused("a block of its columns is none: damaged")
        of_block = names[places]
        count += len(of_block)
        if of_block.shape != values.shape[:1] or count > len(names):
            raise Refused("its columns have two values, or none: damaged")
        columns |= zip(of_block, values, strict=True)
    if len(columns) != len(names) or len({len(column) for column in columns.values()}) > 1:
        raise Refused("its columns are not all there, or of unequal lengths: damaged")
    return columns


class _TableUnpickler(PlainUnpickler):
    """Allows pandas' tables, and arrays of objects that hold only text and numbers."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.allowed |= {
            ("numpy", "dtype"): _dtype,
            ("pandas.core.frame", "DataFrame"): _DataFrame,
            ("pandas.core.internals.managers", "BlockManager"): _Manager,
            ("pandas.core.indexes.base", "_new_Index"): lambda _kind, state: state.get("data"),  # None of a range
            ("pandas.core.indexes.base", "Index"): "Index",  # only used as an argument
            ("pandas.core.indexes.range", "RangeIndex"): "RangeIndex",
            ("builtins", "slice"): slice,
            ("__builtin__", "slice"): slice,
        }

    def load(self) -> dict[str, np.ndarray]:
        return _columns(super().load())

    def fill(self, array: np.ndarray, dtype: Any, shape: Any, fortran: bool, content: Any) -> None:
        """Check the state of an array and set it."""
        if type(dtype) is not _ObjectType:
            super().fill(array, dtype, shape, fortran, content)
            return
        if type(content) is not list or size_of(shape) != len(content):
            raise Refused("an array of objects without as many of them: damaged")
        if any(type(value) not in _PLAIN for value in content):
            raise Refused("an array holds more than text and numbers")
        array.__setstate__((1, shape, np.dtype("O"), fortran, content))
        array.flags.writeable = False


def _dtype(kind: Any, align: Any = None, copy: Any = None) -> Dtype | _ObjectType:
    return _ObjectType() if type(kind) is str and kind in ("O8", "O") else Dtype(kind, align, copy)
