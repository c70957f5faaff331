"""Reading the graph of an ONNX file without the package onnx.

Field numbers are those of onnx.proto3, the encoding is that of protocol buffers (protobuf.dev, "Encoding"). Nothing is
copied: messages are views of the file's bytes. Bytes that are no message raise ValueError or IndexError on the way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from deploy.integrity import Content
from perception.errors import InputError

_GRAPH, _OPSET = 7, 8  # of ModelProto
_NODE, _INPUT, _OUTPUT = 1, 11, 12  # of GraphProto
_EXTERNAL = (13, 14)  # of TensorProto: where the data is, and that it is to be used
DTYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16",
    11: "float64",
}  # fmt: skip

# Every way from a model to a tensor: kind of message -> field -> kind of message in it.
_CONTAINS = {
    "model": {_GRAPH: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {_NODE: "node", 5: "tensor", 15: "sparse tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse tensor", 23: "sparse tensor"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "tensor": {},
}


@dataclass(frozen=True)
class Graph:
    """What a vehicle and a manifest can agree on."""

    opsets: dict[str, int]  # by domain; ONNX's own is "ONNX"
    operators: dict[str, int]  # operator -> number of nodes
    inputs: dict[str, str]  # name -> type and shape, of a dimension without a fixed size its name
    outputs: dict[str, str]


def read_graph(onnx: Content) -> Graph:
    """What an ONNX file says.

    Raises:
        InputError: it is no ONNX file.
    """
    content = onnx.data
    try:
        graph = _merged(content, _GRAPH)
        return Graph(
            opsets={_text(each, 1) or "ONNX": _integer(each, 2) for each in _parts(content, _OPSET)},
            operators=dict(Counter(_text(node, 4) for node in _parts(graph, _NODE))),
            inputs=_tensors(_parts(graph, _INPUT)),
            outputs=_tensors(_parts(graph, _OUTPUT)),
        )
    except (ValueError, IndexError):
        raise _not_onnx(onnx) from None


def require_self_contained(onnx: Content) -> None:
    """Raise InputError where a tensor of the ONNX file lies in another file, which no hash vouches for.

    ONNX Runtime looks for such a file below the working directory where it is given bytes, and TensorRT beside the
    graph.
    """
    stack = [("model", memoryview(onnx.data))]
    try:
        while stack:
            kind, message = stack.pop()
            for number, value in _fields(message):
                if kind == "tensor" and number in _EXTERNAL and value != 0:
                    what = "keeps weights in another file, which nothing vouches for"
                    raise InputError(f"{onnx.path}: {what}; export the bundle again")
                if number in _CONTAINS[kind] and isinstance(value, memoryview):
                    stack.append((_CONTAINS[kind][number], value))
    except (ValueError, IndexError):
        raise _not_onnx(onnx) from None


def _not_onnx(onnx: Content) -> InputError:
    return InputError(f"{onnx.path}: not an ONNX file; export the bundle again")


def _tensors(values: Iterable[memoryview]) -> dict[str, str]:
    """Type and shape of a graph's inputs or outputs (ValueInfoProto) by name."""
    tensors = {}
    for value in values:
        tensor = _merged(_merged(value, 2), 1)  # TypeProto.Tensor
        dtype = DTYPES.get(_integer(tensor, 1), f"type {_integer(tensor, 1)}")
        dimensions = _parts(_merged(tensor, 2), 1)
        tensors[_text(value, 1)] = f"{dtype} {tuple(_text(d, 2) or _integer(d, 1) for d in dimensions)}"
    return tensors


def _fields(message: bytes | memoryview) -> Iterator[tuple[int, int | memoryview]]:
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


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """The integer of variable length at this position, and the position after it."""
    value = shift = 0
    while True:
        byte = message[position]
        value, shift, position = value | (byte & 127) << shift, shift + 7, position + 1
        if byte < 128:
            return value, position


def _parts(message: bytes | memoryview, field: int) -> list[memoryview]:
    """The messages or texts in a repeated field."""
    return [value for number, value in _fields(message) if number == field and isinstance(value, memoryview)]


def _merged(message: bytes | memoryview, field: int) -> bytes | memoryview:
    """The message in a field; one that is written in several pieces is all of them together."""
    pieces = _parts(message, field)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _integer(message: bytes | memoryview, field: int) -> int:
    """The last value of a field, as readers of protocol buffers take it; 0 where there is none."""
    return [0, *(value for number, value in _fields(message) if number == field and isinstance(value, int))][-1]


def _text(message: bytes | memoryview, field: int) -> str:
    """The last value of a field; empty where there is none."""
    return str(b"".join(_parts(message, field)[-1:]), "utf-8")
