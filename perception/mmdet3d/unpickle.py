"""Pickles of plain data and numpy arrays, read without a single call of what they name.

Python's own unpickler looks up and calls whatever a file asks for. This machine has no way to do so: it knows the
opcodes that dicts, lists, numbers, text and arrays need, and a few names, for which functions here stand.
All else is refused: other names, objects, extension codes, persistent ids, buffers outside the file. Its memory is
bounded by a multiple of the file's size.

Format: `pickletools` of the standard library, protocols 2 to 5; arrays as numpy 1 (`numpy.core`) and 2 (`numpy._core`)
write them.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from perception.errors import InputError
from perception.mmdet3d.pickled_arrays import KNOWN, Known, Refused, Unbuilt, array

_FOUR_BYTES = struct.Struct("<I").unpack_from
_DOUBLE = struct.Struct(">d").unpack_from
_CODES = {opcode.name: ord(opcode.code) for opcode in pickletools.opcodes}
_NAMES = {code: name for name, code in _CODES.items()}


def read_plain(path: Path) -> Any:
    """The dicts, lists, tuples, numbers, text, bytes and arrays of a pickle; numpy scalars become Python's numbers.

    Raises:
        InputError: the file cannot be read, is no pickle, is truncated or damaged, or asks for anything else.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot read the file ({error.strerror})") from None
    machine = _Machine(content)
    try:
        return machine.run()
    except Refused as error:
        reason = str(error)
    except (IndexError, struct.error):
        reason = "damaged or truncated"
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        reason = f"damaged ({' '.join(str(error).split())[:80]})"
    raise InputError(f"{path}: not read: at byte {machine.at} of {len(content)}, {reason}; nothing in it was run")


class _Machine:
    """One run over the opcodes of a pickle; every method is the opcode of that name."""

    def __init__(self, content: bytes) -> None:
        self.content, self.at = content, 0
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # what was on the stack at each mark
        self.memo: list[Any] = []

    def run(self) -> Any:
        if self.content[:1] != b"\x80" or self.content[1:2] not in (b"\x02", b"\x03", b"\x04", b"\x05"):
            raise Refused("this is no pickle of protocol 2 to 5")
        operations: list[Callable[[], None]] = [self._unknown] * 256
        for name in vars(type(self)):
            if name.isupper():
                operations[_CODES[name]] = getattr(self, name)
        content = self.content
        self.at, end, stop = 2, len(content), ord(".")
        while self.at < end:
            code = content[self.at]
            self.at += 1
            if code == stop:
                if self.at < end or self.below or len(self.stack) != 1:
                    raise Refused("it ends too early: damaged")
                return self.stack[0]
            operations[code]()
        raise Refused("it ends without its last opcode: truncated")

    def _unknown(self) -> None:
        name = _NAMES.get(self.content[self.at - 1])
        raise Refused(f"it asks for {name}, which plain data does not need" if name else "no opcode: damaged")

    # What opcodes carry.

    def _bytes(self, count: int) -> bytes:
        if count > len(self.content) - self.at:
            raise Refused(f"{count} bytes should follow, but the file ends: truncated")
        self.at += count
        return self.content[self.at - count : self.at]

    def _number(self, width: int) -> int:
        return int.from_bytes(self._bytes(width), "little")

    def _line(self) -> str:
        end = self.content.index(b"\n", self.at)
        text = self._bytes(end - self.at).decode()
        self.at += 1
        return text

    def FRAME(self) -> None:
        if self._number(8) > len(self.content) - self.at:
            raise Refused("the file ends before its frame: truncated")

    # Values.

    def NONE(self) -> None:
        self.stack.append(None)

    def NEWTRUE(self) -> None:
        self.stack.append(True)

    def NEWFALSE(self) -> None:
        self.stack.append(False)

    def BININT(self) -> None:
        self.stack.append(int.from_bytes(self._bytes(4), "little", signed=True))

    def BININT1(self) -> None:
        self.stack.append(self.content[self.at])
        self.at += 1

    def BININT2(self) -> None:
        self.stack.append(self._number(2))

    def LONG1(self) -> None:
        self.stack.append(int.from_bytes(self._bytes(self._number(1)), "little", signed=True))

    def BINFLOAT(self) -> None:
        self.stack.append(_DOUBLE(self.content, self.at)[0])
        self.at += 8

    def BINUNICODE(self) -> None:
        self.stack.append(self._bytes(self._number(4)).decode("utf-8", "surrogatepass"))

    def SHORT_BINUNICODE(self) -> None:
        self.stack.append(self._bytes(self._number(1)).decode("utf-8", "surrogatepass"))

    def BINUNICODE8(self) -> None:
        self.stack.append(self._bytes(self._number(8)).decode("utf-8", "surrogatepass"))

    def BINBYTES(self) -> None:
        self.stack.append(self._bytes(self._number(4)))

    def SHORT_BINBYTES(self) -> None:
        self.stack.append(self._bytes(self._number(1)))

    def BINBYTES8(self) -> None:
        self.stack.append(self._bytes(self._number(8)))

    BYTEARRAY8 = BINBYTES8  # bytes that may change; here none do

    # Containers.

    def MARK(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def _since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def POP(self) -> None:
        self.stack.pop()

    def EMPTY_LIST(self) -> None:
        self.stack.append([])

    def APPEND(self) -> None:
        item = self.stack.pop()
        self._top(list).append(item)

    def APPENDS(self) -> None:
        items = self._since_mark()
        self._top(list).extend(items)

    def EMPTY_TUPLE(self) -> None:
        self.stack.append(())

    def TUPLE(self) -> None:
        items = self._since_mark()
        self.stack.append(tuple(items))

    def TUPLE1(self) -> None:
        self.stack.append((self.stack.pop(),))

    def TUPLE2(self) -> None:
        last = self.stack.pop()
        self.stack.append((self.stack.pop(), last))

    def TUPLE3(self) -> None:
        last, middle = self.stack.pop(), self.stack.pop()
        self.stack.append((self.stack.pop(), middle, last))

    def EMPTY_DICT(self) -> None:
        self.stack.append({})

    def SETITEM(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def SETITEMS(self) -> None:
        self._set(self._since_mark())

    def _set(self, items: list[Any]) -> None:
        target = self._top(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) is not str:  # tuples and numbers can be such that hashing them takes for ever
                raise Refused(f"a key of a dict is {type(key).__name__}, not text")
            target[key] = value

    def _top(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise Refused(f"a {kind.__name__} should be on the stack: damaged")
        return self.stack[-1]

    # The memo. Writers number it from 0 (or 1) on, so a place far behind its end is damage, and costs no memory.

    def _memoize(self, place: int) -> None:
        if place > len(self.memo) + 1:
            raise Refused(f"memo place {place} after {len(self.memo)}: damaged")
        value = self.stack[-1]
        if place == len(self.memo):
            self.memo.append(value)
        else:
            self.memo.extend([None] * (place + 1 - len(self.memo)))
            self.memo[place] = value
        if type(value) is Unbuilt:
            value.places.append(place)

    def BINPUT(self) -> None:
        self._memoize(self.content[self.at])
        self.at += 1

    def LONG_BINPUT(self) -> None:
        self._memoize(_FOUR_BYTES(self.content, self.at)[0])
        self.at += 4

    def MEMOIZE(self) -> None:
        self._memoize(len(self.memo))

    def BINGET(self) -> None:
        self.stack.append(self.memo[self.content[self.at]])
        self.at += 1

    def LONG_BINGET(self) -> None:
        self.stack.append(self.memo[_FOUR_BYTES(self.content, self.at)[0]])
        self.at += 4

    # Names, of which none is looked up.

    def GLOBAL(self) -> None:
        module = self._line()
        self._name(module, self._line())

    def STACK_GLOBAL(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self._name(module, name)

    def _name(self, module: Any, name: Any) -> None:
        known = KNOWN.get((module, name)) if type(module) is type(name) is str else None
        if known is None:
            asked = (
                ascii(f"{module[:40]}.{name[:40]}") if type(module) is type(name) is str else "names that are no text"
            )
            raise Refused(f"it asks for {asked}, which plain data and numpy arrays do not need")
        self.stack.append(known)

    def REDUCE(self) -> None:
        arguments, name = self.stack.pop(), self.stack.pop()
        if type(arguments) is not tuple or type(name) is not Known:
            raise Refused("it calls what is no name: damaged")
        self.stack.append(name.make(*arguments))

    def BUILD(self) -> None:
        state, unbuilt = self.stack.pop(), self.stack.pop()
        if type(state) is not tuple or type(unbuilt) is not Unbuilt:
            raise Refused("it gives a state to what has none: damaged")
        if unbuilt.dtype is None:
            _, shape, dtype, fortran, content = state
            value: Any = array(content, dtype, shape, "F" if fortran is True else "C")
        else:
            _, order, subtype, names, fields, *_ = state
            if order not in ("<", ">", "|", "=") or (subtype, names, fields) != (None, None, None):
                raise Refused(f"an array's type {unbuilt.dtype!a} has fields; only numbers and text are read")
            value = np.dtype(unbuilt.dtype).newbyteorder(order)
        for place in unbuilt.places:
            self.memo[place] = value
        self.stack.append(value)
