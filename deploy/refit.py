"""What two graphs must have in common for the plan of one to run with the weights of the other. No onnx here.

A plan that was compiled to be refitted (`perception build --refit`) keeps the network's layers and takes other numbers
for their weights, which it knows by their names in the ONNX graph. So everything else of the graph is its structure:
nodes, names, shapes and types, and those constants that are no weights, such as shapes, limits and the scales of INT8.

Read from the file's bytes (`deploy.wire`) by the field numbers of onnx.proto3: the vehicle, where plans are compiled
and refitted, has no onnx.
"""

from __future__ import annotations

import hashlib
from itertools import zip_longest

from deploy.integrity import Content
from deploy.onnx_file import GRAPH, INITIALIZER, NODE, not_onnx
from deploy.wire import Message, fields, integers, merged, parts, text
from perception.errors import InputError

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


def structure(onnx: Content) -> Structure:
    """The structure of the network in an ONNX file, the same for the same network with other weights.

    Raises:
        InputError: the file is no such.
    """
    try:
        model = onnx.data
        graph = merged(model, GRAPH)
        nodes = parts(graph, NODE)
        weights = _weights(nodes)
        return (
            ("the version of the graph", _rest(model, GRAPH)),
            *((f"node {text(node, NODE_NAME)} [{text(node, OPERATOR)}]", _sha256(node)) for node in nodes),
            *(_initializer(tensor, weights) for tensor in parts(graph, INITIALIZER)),
            ("the inputs and outputs of the graph", _rest(graph, NODE, INITIALIZER)),
        )
    except (ValueError, IndexError):
        raise not_onnx(onnx) from None


def require_same_structure(onnx: Content, compiled: Content) -> None:
    """Raise InputError unless the plan of the ONNX file `compiled` can run with the weights of `onnx`."""
    for new, old in zip_longest(structure(onnx), structure(compiled), fillvalue=("nothing more", "")):
        if new != old:
            what = f"{new[0]} differs" if new[0] == old[0] else f"{new[0]} here, {old[0]} there"
            raise InputError(
                f"{onnx.path}: has another structure than {compiled.path} ({what}), so it needs a plan of its own"
            )


def _weights(nodes: list[memoryview]) -> set[str]:
    """Names of what nodes take for trained numbers, and no node for anything else."""
    trained: set[str] = set()
    other: set[str] = set()
    for node in nodes:
        places = WEIGHTS.get(text(node, OPERATOR), ())
        for place, name in enumerate(parts(node, NODE_INPUT)):
            (trained if place in places else other).add(str(name, "utf-8"))
    return trained - other


def _initializer(tensor: memoryview, trained: set[str]) -> tuple[str, str]:
    """What it is, with its name, type and shape if these are weights, and the sha256 of its content if not."""
    name, shape = text(tensor, TENSOR_NAME), tuple(integers(tensor, DIMENSIONS))
    dtype = FLOATS.get(next(iter(integers(tensor, TYPE)), 0))
    if name in trained and dtype and shape:  # a number without a shape is a constant of the computation
        return f"weights {name} of {dtype} {shape}", ""
    return f"constant {name}", _sha256(tensor)


def _rest(message: Message, *without: int) -> str:
    """The sha256 of all other fields."""
    kept = [(number, value) for number, value in fields(message) if number not in without]
    plain = [(number, value if isinstance(value, int) else bytes(value)) for number, value in kept]
    return _sha256(repr(plain).encode())


def _sha256(content: Message) -> str:
    return hashlib.sha256(content).hexdigest()
