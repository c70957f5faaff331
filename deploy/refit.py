"""What two graphs must have in common for the plan of one to run with the weights of the other. No onnx here.

A plan that was compiled to be refitted (`perception build --refit`) keeps the network's layers and takes other numbers
for their weights, which it knows by their names in the ONNX graph. So everything else of the graph is its structure:
nodes, names, shapes and types, and those constants that are no weights, such as shapes, limits and the scales of INT8.

Read from the file's bytes, by the wire format of protocol buffers (protobuf.dev, "Encoding") and the field numbers of
onnx.proto3: the vehicle, where plans are compiled and refitted, has no onnx.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

from perception.errors import InputError

GRAPH = 7  # of ModelProto
NODE, INITIALIZER = 1, 5  # of GraphProto
NODE_INPUT, NODE_NAME, OPERATOR = 1, 3, 4  # of NodeProto
DIMENSIONS, TYPE, TENSOR_NAME = 1, 2, 8  # of TensorProto
FLOATS = {1: "float32", 10: "float16"}  # values of TYPE

# Where an operator takes trained numbers: the places among its inputs, from 0. TensorRT knows them by the names in the
# file, except those of BatchNormalization, which it combines, and its refitter for ONNX combines anew.
WEIGHTS = {
    "Add": (0, 1),
    "BatchNormalization": (1, 2, 3, 4),
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Div": (0, 1),
    "Gather": (0,),
    "Gemm": (0, 1, 2),
    "MatMul": (0, 1),
    "Mul": (0, 1),
    "Sub": (0, 1),
}

Structure = tuple[tuple[str, str], ...]
"""The parts of a graph: what each is, and the sha256 of all of it that refitting cannot change."""


def structure(onnx: Path) -> Structure:
    """The structure of the network in an ONNX file, the same for the same network with other weights.

    Raises:
        InputError: the file is no such.
    """
    model = onnx.read_bytes()
    try:
        graph = b"".join(_parts(model, GRAPH))
        nodes = _parts(graph, NODE)
        weights = _weights(nodes)
        return (
            ("the version of the graph", _rest(model, GRAPH)),
            *((f"node {_text(node, NODE_NAME)} [{_text(node, OPERATOR)}]", _sha256(node)) for node in nodes),
            *(_initializer(tensor, weights) for tensor in _parts(graph, INITIALIZER)),
            ("the inputs and outputs of the graph", _rest(graph, NODE, INITIALIZER)),
        )
    except (ValueError, IndexError):
        raise InputError(f"{onnx}: not an ONNX file; export the bundle again") from None


def require_same_structure(onnx: Path, compiled: Path) -> None:
    """Raise InputError unless the plan of the ONNX file `compiled` can run with the weights of `onnx`."""
    for new, old in zip_longest(structure(onnx), structure(compiled), fillvalue=("nothing more", "")):
        if new != old:
            what = f"{new[0]} differs" if new[0] == old[0] else f"{new[0]} here, {old[0]} there"
            raise InputError(f"{onnx}: has another structure than {compiled} ({what}), so it needs a plan of its own")


def _weights(nodes: list[bytes]) -> set[str]:
    """Names of what nodes take for trained numbers, and no node for anything else."""
    trained: set[str] = set()
    other: set[str] = set()
    for node in nodes:
        places = WEIGHTS.get(_text(node, OPERATOR), ())
        for place, name in enumerate(_parts(node, NODE_INPUT)):
            (trained if place in places else other).add(str(name, "utf-8"))
    return trained - other


def _initializer(tensor: bytes, trained: set[str]) -> tuple[str, str]:
    """What it is, with its name, type and shape if these are weights, and the sha256 of its content if not."""
    name, shape = _text(tensor, TENSOR_NAME), tuple(_integers(tensor, DIMENSIONS))
    dtype = FLOATS.get(next(iter(_integers(tensor, TYPE)), 0))
    if name in trained and dtype and shape:  # a number without a shape is a constant of the computation
        return f"weights {name} of {dtype} {shape}", ""
    return f"constant {name}", _sha256(tensor)


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The number and value of each field of a message, in order.

    Raises:
        ValueError, IndexError: these bytes are no message.
    """
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


def _varint(message: bytes, position: int) -> tuple[int, int]:
    """The integer of variable length at this position, and the position after it."""
    value = shift = 0
    while True:
        byte = message[position]
        value, shift, position = value | (byte & 127) << shift, shift + 7, position + 1
        if byte < 128:
            return value, position


def _parts(message: bytes, field: int) -> list[bytes]:
    """The messages or texts in a repeated field."""
    return [value for number, value in _fields(message) if number == field and isinstance(value, bytes)]


def _integers(message: bytes, field: int) -> Iterator[int]:
    """The integers in a repeated field, packed or not."""
    for number, value in _fields(message):
        if number == field and isinstance(value, int):
            yield value
        elif number == field and isinstance(value, bytes):
            position = 0
            while position < len(value):
                packed, position = _varint(value, position)
                yield packed


def _text(message: bytes, field: int) -> str:
    return str(b"".join(_parts(message, field)[:1]), "utf-8")


def _rest(message: bytes, *fields: int) -> str:
    """The sha256 of all other fields."""
    return _sha256(repr([field for field in _fields(message) if field[0] not in fields]).encode())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
