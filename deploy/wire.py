"""The wire format of protocol buffers (protobuf.dev, "Encoding"), read without their library: the vehicle has no onnx.

Nothing is copied: messages are views of the file's bytes. All functions raise ValueError or IndexError where the bytes
are no message.
"""

from __future__ import annotations

from collections.abc import Iterator

Message = bytes | memoryview


def fields(message: Message) -> Iterator[tuple[int, int | memoryview]]:
    """The number and value of each field of a message, in order."""
    message = memoryview(message)
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        kind = key & 7
        if kind == 0:
            value, position = _varint(message, position)
            yield key >> 3, value
            continue
        if kind == 2:
            size, position = _varint(message, position)
        else:
            size = {1: 8, 5: 4}.get(kind, len(message))
        if size > len(message) - position:
            raise ValueError(f"{size} bytes at {position} of {len(message)}")
        yield key >> 3, message[position : position + size]
        position += size


def parts(message: Message, field: int) -> list[memoryview]:
    """The messages or texts in a repeated field."""
    return [value for number, value in fields(message) if number == field and isinstance(value, memoryview)]


def merged(message: Message, field: int) -> Message:
    """The message in a field; one that is written in several pieces is all of them together."""
    pieces = parts(message, field)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def integers(message: Message, field: int) -> Iterator[int]:
    """The integers in a repeated field, packed or not."""
    for number, value in fields(message):
        if number == field and isinstance(value, int):
            yield value
        elif number == field and isinstance(value, memoryview):
            position = 0
            while position < len(value):
                packed, position = _varint(value, position)
                yield packed


def integer(message: Message, field: int) -> int:
    """The last value of a field, as readers of protocol buffers take it; 0 where there is none."""
    return [0, *integers(message, field)][-1]


def text(message: Message, field: int) -> str:
    """The last value of a field; empty where there is none."""
    return str(b"".join(parts(message, field)[-1:]), "utf-8")


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """The integer of variable length at this position, and the position after it."""
    value = shift = 0
    while True:
        byte = message[position]
        value, shift, position = value | (byte & 127) << shift, shift + 7, position + 1
        if byte < 128:
            return value, position
