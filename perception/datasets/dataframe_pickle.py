"""Reads tables that pandas pickled, without pandas and without calling anything that the file names.

What stands for pandas' objects here keeps their state and checks it; the rest is as in `perception.io.unpickle`.

Format: `DataFrame.to_pickle` of pandas before 1.3, with gzip; the blocks of columns are in `BlockManager.__getstate__`,
under "0.14.1".
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from perception.errors import InputError
from perception.io.unpickle import Dtype, Inert, PlainUnpickler, Refused, size_of, unpickled

_MAX_BYTES = 1 << 28  # of a decompressed table; gzip can hold a thousand times its size
_GZIP = 16 + zlib.MAX_WBITS
_KINDS = {"f": "numbers", "iu": "whole numbers", "O": "text"}
_PLAIN = (str, float, int, bool, type(None))


def read_table(path: Path, columns: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Columns (N,) of a table, read-only.

    Args:
        path: a .pkl.gz file.
        columns: name -> what it holds: 'f' finite numbers, 'iu' whole ones, 'O' text.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: the file is unsafe or damaged, or lacks such a column.
    """
    found = unpickled(_decompressed(path), path, _TableUnpickler)
    for name, kinds in columns.items():
        if name not in found:
            raise InputError(f"{path}: has no column {name!r}; it has {', '.join(found)}")
        column = found[name]
        if column.dtype.kind not in kinds or (kinds == "O" and any(type(value) is not str for value in column)):
            raise InputError(f"{path}: column {name!r} holds something else than {_KINDS[kinds]} ({column.dtype})")
        if kinds == "f" and not np.isfinite(column).all():
            raise InputError(f"{path}: column {name!r} holds NaN or infinity; copy the file again or delete it")
    return {name: found[name] for name in columns}


def _decompressed(path: Path) -> bytes:
    try:
        stream = zlib.decompressobj(_GZIP)
        content = stream.decompress(path.read_bytes(), _MAX_BYTES)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot read the file ({error.strerror})") from None
    except zlib.error as error:
        raise InputError(f"{path}: not gzip, or damaged ({error})") from None
    if stream.unconsumed_tail:
        raise InputError(f"{path}: not read: it holds more than {_MAX_BYTES >> 20} MiB, no table of a frame does")
    if not stream.eof:
        raise InputError(f"{path}: truncated; copy the file again")
    return content


class _ObjectType(Inert):
    """The dtype of an array of text or mixed values."""

    def build(self, state: Any) -> None:
        pass  # always the same


class _Manager(Inert):
    """Stands for pandas' BlockManager."""

    state: Any = None

    def build(self, state: Any) -> None:
        self.state = state


class _DataFrame(_Manager):
    """Stands for pandas' DataFrame."""


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
            ("pandas.core.indexes.base", "_new_Index"): _index,
            ("pandas.core.indexes.base", "Index"): "Index",  # only used as an argument
            ("pandas.core.indexes.range", "RangeIndex"): "RangeIndex",
            ("builtins", "slice"): slice,
            ("__builtin__", "slice"): slice,
        }

    def load(self) -> dict[str, np.ndarray]:
        """The columns by name."""
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


def _index(_kind: Any, state: Any) -> Any:
    """The names of an index; None for a range of numbers."""
    return state.get("data")
