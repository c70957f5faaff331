"""Pickles of plain data and numpy arrays, read without a call of anything that they name.

This is Python's own unpickler with two allow-lists. Of opcodes it knows those that dicts, lists, numbers, text and
arrays need: no objects, extension codes, persistent ids or buffers outside the file. The few names that numpy's arrays
need give functions of this file, so that nothing is looked up. It is the unpickler in Python, since that in C takes no
list of opcodes, hashes whatever a file has for a key, and keeps a memo as large as a file says.
Memory is bounded by a multiple of the file's size.

Format: `pickletools` of the standard library, protocols 2 to 5; arrays as numpy 1 (`numpy.core`) and 2 (`numpy._core`)
write them.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from perception.errors import InputError

_NUMBERS_AND_TEXT = re.compile(r"[biufSU]\d{1,6}")  # dtypes; no objects, no structures
_MOST_DIMENSIONS = 32
_LAST_CHARACTER = 0x10FFFF  # numpy's conversion to a str does not expect a greater one
_DAMAGE = (
    pickle.UnpicklingError, LookupError, EOFError, struct.error, TypeError, ValueError, ArithmeticError, AttributeError,
)  # fmt: skip
_OPCODES = (
    "PROTO", "FRAME", "STOP", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT",
    "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "MARK", "POP",
    "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_DICT", "MEMOIZE",
    "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "GLOBAL", "STACK_GLOBAL", "REDUCE",
)  # fmt: skip


class _Refused(ValueError):
    """What is wrong with a file."""


def read_plain(path: Path) -> Any:
    """The dicts, lists, tuples, numbers, text, bytes and arrays of a pickle; numpy scalars become Python's numbers.

    Raises:
        InputError: the file cannot be read, is no pickle, is truncated or damaged, or asks for anything else.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot read the file ({error.strerror})") from None
    try:
        if not re.match(rb"\x80[\2-\5]", content):
            raise _Refused("this is no pickle of protocol 2 to 5")
        unpickler = _Unpickler(content)
        value = unpickler.load()
        if unpickler.read(1) or unpickler.stack or unpickler.metastack:
            raise _Refused("it ends too early: damaged")
        return value
    except _Refused as error:
        reason = str(error)
    except _DAMAGE:
        reason = "damaged or truncated"
    raise InputError(f"{path}: not read: {reason}; nothing in it was run")


class _Type:
    """The dtype of an array of numbers or text. numpy's own would be shared by all arrays, and BUILD changes it."""

    def __init__(self, kind: Any, _align: Any = None, _copy: Any = None) -> None:
        if type(kind) is not str or not _NUMBERS_AND_TEXT.fullmatch(kind):
            shown = ascii(kind[:40]) if type(kind) is str else f"a {type(kind).__name__}"
            raise _Refused(f"an array is of type {shown}; only numbers and text are read")
        self.dtype = np.dtype(kind)

    def build(self, state: Any) -> None:
        _, order, subtype, names, fields, *_ = state
        if order not in ("<", ">", "|", "=") or (subtype, names, fields) != (None, None, None):
            raise _Refused("an array's type has fields; only numbers and text are read")
        self.dtype = self.dtype.newbyteorder(order)


class _Opcodes(dict[int, Callable[[Any], None]]):
    """What opcodes do; those of which plain data has no need are refused."""

    def __missing__(self, code: int) -> Callable[[Any], None]:
        names = [opcode.name for opcode in pickletools.opcodes if opcode.code == chr(code)]
        raise _Refused(f"it asks for {names[0]}, which plain data does not need" if names else "no opcode: damaged")


class _Unpickler(pickle._Unpickler):
    """Of a file's content; every call that a file can make is of a method below, or of `_Type`."""

    read: Callable[[int], bytes]
    stack: list[Any]
    metastack: list[Any]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content))
        self._left = 2 * len(content)  # bytes and arrays of them; bytes that the file has once can be called for often
        self._known: dict[tuple[str, str], Any] = {
            ("numpy", "ndarray"): "ndarray",  # only ever an argument
            ("numpy", "dtype"): _Type,
            ("_codecs", "encode"): self._encoded,
            ("__builtin__", "bytes"): lambda: b"",  # as protocol 2 has them
            ("collections", "OrderedDict"): lambda: {},
        }
        for core in ("numpy.core", "numpy._core"):
            self._known[f"{core}.multiarray", "_reconstruct"] = self._array_to_build
            self._known[f"{core}.multiarray", "scalar"] = self._scalar
            self._known[f"{core}.numeric", "_frombuffer"] = self._array

    def find_class(self, module: str, name: str) -> Any:
        known = self._known.get((module, name))
        if known is None:
            asked = ascii(f"{module[:40]}.{name[:40]}")
            raise _Refused(f"it asks for {asked}, which plain data and numpy arrays do not need")
        return known

    def _encoded(self, text: Any, encoding: Any) -> bytes:
        """Bytes as protocol 2 has them."""
        if type(text) is not str or encoding != "latin1":
            raise _Refused("bytes in an unknown encoding: damaged")
        self._count(len(text))
        return text.encode("latin1")

    def _array(self, content: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
        array = self._array_to_build()
        self._fill(array, dtype, shape, type(order) is str and order == "F", content)
        return array

    def _scalar(self, dtype: Any, content: Any) -> Any:
        return self._array(content, dtype, (), "C").item()

    def _array_to_build(self, _class: Any = None, _shape: Any = None, _kind: Any = None) -> np.ndarray:
        """An array whose state follows. Whatever class and shape the file says, it is numpy's own and empty."""
        return np.zeros(0, np.uint8)

    def _fill(self, array: np.ndarray, dtype: Any, shape: Any, fortran: bool, content: Any) -> None:
        """Give an array its state after all of it is checked; nothing is allocated that the file does not hold."""
        if type(dtype) is not _Type or type(content) is not bytes:
            raise _Refused("an array without type or content: damaged")
        sizes = shape if type(shape) is tuple and len(shape) <= _MOST_DIMENSIONS else (-1,)
        if any(type(size) is not int or size < 0 for size in sizes):
            raise _Refused("an array's shape is no short tuple of numbers: damaged")
        kind, count = dtype.dtype, math.prod(sizes)
        if count * kind.itemsize != len(content) or (count and not content):
            raise _Refused(f"an array of shape {str(shape)[:40]} and type {kind} has {len(content)} bytes: truncated")
        if kind.kind == "U" and (np.frombuffer(content, kind.byteorder + "u4") > _LAST_CHARACTER).any():
            raise _Refused("an array's text is none: damaged")
        self._count(len(content))
        array.__setstate__((1, shape, kind, fortran, content))
        array.flags.writeable = False

    def _count(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise _Refused("its arrays share their bytes, as no writer of arrays has it: they could fill the memory")

    def _build(self) -> None:
        state, unbuilt = self.stack.pop(), self.stack[-1]
        if type(state) is not tuple or type(unbuilt) not in (_Type, np.ndarray):
            raise _Refused("it gives a state to what has none: damaged")
        if type(unbuilt) is _Type:
            unbuilt.build(state)
        else:
            _, shape, dtype, fortran, content = state
            self._fill(unbuilt, dtype, shape, fortran is True, content)

    def _set_items(self, items: list[Any] | None = None) -> None:
        items = self.pop_mark() if items is None else items
        if type(self.stack[-1]) is not dict:
            raise _Refused("a dict should be on the stack: damaged")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) is not str:  # tuples and numbers can be such that hashing them takes for ever
                raise _Refused(f"a key of a dict is {type(key).__name__}, not text")
            self.stack[-1][key] = value

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = _Opcodes(
        {pickle.BUILD[0]: _build, pickle.SETITEM[0]: _set_item, pickle.SETITEMS[0]: _set_items}
    )
    for _name in _OPCODES:
        dispatch[getattr(pickle, _name)[0]] = pickle._Unpickler.dispatch[getattr(pickle, _name)[0]]
    dispatch[pickle.BYTEARRAY8[0]] = dispatch[pickle.BINBYTES8[0]]  # bytes that may change; here none do
