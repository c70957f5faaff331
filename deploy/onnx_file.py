"""Read the graph of an ONNX file without the onnx package.

Field numbers are from onnx.proto3, the encoding is that of Protocol Buffers (protobuf.dev, "Encoding"). Messages are
views of the file's bytes, without copies. Malformed bytes raise ValueError or IndexError.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from deploy.integrity import Content
from perception.errors import InputError

_GRAPH, _OPSET = 7, 8  # of ModelProto
_NODE, _INPUT, _OUTPUT = 1, 11, 12  # of GraphProto
_EXTERNAL = (13, 14)  # of TensorProto: location of external data, and whether it is used
DTYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16",
    11: "float64",
}  # fmt: skip

# Every path from a model to a tensor: kind of message -> field -> kind of message in it.
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
    """The properties of a graph that a manifest describes."""

    opsets: dict[str, int]  # by domain; ONNX's own is "ONNX"
    operators: dict[str, int]  # operator -> number of nodes
    inputs: dict[str, str]  # name -> type and shape; a dynamic dimension is given by its name
    outputs: dict[str, str]


def read_graph(onnx: Content) -> Graph:
    """Read the graph of an ONNX file.

    Raises:
        InputError: it is not an ONNX file.
    """
    content = onnx.data
    try:
        graph = _merge_pieces(content, _GRAPH)
        return Graph(
            opsets={_text(each, 1) or "ONNX": _integer(each, 2) for each in _parts(content, _OPSET)},
            operators=dict(Counter(_text(node, 4) for node in _parts(graph, _NODE))),
            inputs=_tensors(_parts(graph, _INPUT)),
            outputs=_tensors(_parts(graph, _OUTPUT)),
        )
    except (ValueError, IndexError):
        raise _not_onnx(onnx) from None


def require_self_contained(onnx: Content) -> None:
    """Raise InputError if a tensor of the ONNX file is stored in another file, which no hash covers.

    ONNX Runtime would look for that file in the working directory, and TensorRT beside the graph.
    """
    stack = [("model", memoryview(onnx.data))]
    try:
        while stack:
            kind, message = stack.pop()
            for number, value in _fields(message):
                if kind == "tensor" and number in _EXTERNAL and value != 0:
                    what = "keeps weights in another file, which no hash covers"
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
        tensor = _merge_pieces(_merge_pieces(value, 2), 1)  # TypeProto.Tensor
        dtype = DTYPES.get(_integer(tensor, 1), f"type {_integer(tensor, 1)}")
        dimensions = _parts(_merge_pieces(tensor, 2), 1)
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


def _merge_pieces(message: bytes | memoryview, field: int) -> bytes | memoryview:
    """The message in a field; one that was written in several pieces is joined."""
    pieces = _parts(message, field)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _integer(message: bytes | memoryview, field: int) -> int:
    """The last value of a field, as Protocol Buffers define it; 0 if there is none."""
    return [0, *(value for number, value in _fields(message) if number == field and isinstance(value, int))][-1]


def _text(message: bytes | memoryview, field: int) -> str:
    """The last value of a field; empty if there is none."""
    return str(b"".join(_parts(message, field)[-1:]), "utf-8")
