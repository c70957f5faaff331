"""What an ONNX file says of its graph, read where there is no onnx. Field numbers are those of onnx.proto3."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from deploy.integrity import Content
from deploy.wire import fields, integer, integers, merged, parts, text
from perception.errors import InputError

GRAPH, OPSET = 7, 8  # of ModelProto
NODE, INITIALIZER, INPUT, OUTPUT = 1, 5, 11, 12  # of GraphProto
EXTERNAL_DATA, DATA_LOCATION = 13, 14  # of TensorProto
DTYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16",
    11: "float64",
}  # fmt: skip

# Every way from a model to a tensor: kind of message -> field -> kind of message in it.
_CONTAINS = {
    "model": {GRAPH: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {NODE: "node", INITIALIZER: "tensor", 15: "sparse tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse tensor", 23: "sparse tensor"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
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
        graph = merged(content, GRAPH)
        return Graph(
            opsets={text(each, 1) or "ONNX": integer(each, 2) for each in parts(content, OPSET)},
            operators=dict(Counter(text(node, 4) for node in parts(graph, NODE))),
            inputs=_tensors(parts(graph, INPUT)),
            outputs=_tensors(parts(graph, OUTPUT)),
        )
    except (ValueError, IndexError):
        raise not_onnx(onnx) from None


def require_self_contained(onnx: Content) -> None:
    """Raise InputError where a tensor of the ONNX file lies in another file, which no hash vouches for.

    ONNX Runtime looks for such a file below the working directory where it is given bytes, and TensorRT beside the
    graph.
    """
    stack = [("model", memoryview(onnx.data))]
    try:
        while stack:
            kind, message = stack.pop()
            if kind == "tensor":
                if any(integers(message, DATA_LOCATION)) or parts(message, EXTERNAL_DATA):
                    what = "keeps weights in another file, which nothing vouches for"
                    raise InputError(f"{onnx.path}: {what}; export the bundle again")
                continue
            for number, value in fields(message):
                if number in _CONTAINS[kind] and isinstance(value, memoryview):
                    stack.append((_CONTAINS[kind][number], value))
    except (ValueError, IndexError):
        raise not_onnx(onnx) from None


def not_onnx(onnx: Content) -> InputError:
    return InputError(f"{onnx.path}: not an ONNX file; export the bundle again")


def _tensors(values: Iterable[memoryview]) -> dict[str, str]:
    """Type and shape of a graph's inputs or outputs (ValueInfoProto) by name."""
    tensors = {}
    for value in values:
        tensor = merged(merged(value, 2), 1)  # TypeProto.Tensor
        dtype = DTYPES.get(integer(tensor, 1), f"type {integer(tensor, 1)}")
        dimensions = parts(merged(tensor, 2), 1)
        tensors[text(value, 1)] = f"{dtype} {tuple(text(d, 2) or integer(d, 1) for d in dimensions)}"
    return tensors
