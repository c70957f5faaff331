"""The part of the network that a node of an exported graph is in, found by following tensors, not by names.

sensors ──> encoding ──> convolutions and what is between them ──> last layers ──> decoding ──> outputs
                   └──<── view transform ──<── decoding ──<── last layers ──<──┘
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx
from onnx import TensorProto

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
STEERING = frozenset({"route", "conditions"})  # inputs that say which modules run; all others come from sensors


@dataclass(frozen=True)
class Places:
    """The nodes of a graph by part of the network, each known by its first output."""

    encoding: frozenset[
        str
    ]  # between the sensors, or constants, and the convolutions: points, pillars, projection, lift
    heads: frozenset[str]  # convolutions that lead to outputs and to no other convolution
    views: frozenset[str]  # convolutions with no other between them and the view transform
    decoding: frozenset[str]  # behind both: peaks, boxes, probabilities, depths

    @property
    def last(self) -> frozenset[str]:
        return self.heads | self.views


def places(graph: onnx.GraphProto) -> Places:
    """Follow the sensors forward, and the outputs and what meets the sensors' geometry back, to a convolution."""
    constant = {tensor.name for tensor in graph.initializer}
    sensed = {tensor.name for tensor in graph.input} - STEERING
    encoding, met = set(), set()
    for node in graph.node:  # in topological order
        inputs = {name for name in node.input if name}
        if inputs <= constant:
            constant.update(node.output)
        elif inputs & sensed and node.op_type not in CONVOLUTIONS:
            sensed.update(node.output)
            met |= inputs
        else:
            continue
        encoding.add(node.output[0])
    ends, decoding = _back(graph, {tensor.name for tensor in graph.output}, encoding)
    views, lifted = _back(graph, met, encoding)
    heads = ends - _leading_on(graph)  # the fused map, from which conditions are recognised, goes on into the trunk
    return Places(frozenset(encoding), frozenset(heads), frozenset(views), frozenset(decoding | lifted))


def _leading_on(graph: onnx.GraphProto) -> set[str]:
    """First outputs of the nodes that lead to another convolution.

    The choice of the best cells (TopK) decides where boxes are regressed, but does not count as an input of that
    convolution.
    """
    taken: set[str] = set()
    leading = set()
    for node in reversed(graph.node):
        if node.op_type == "TopK":
            continue
        if not taken.isdisjoint(node.output):
            leading.add(node.output[0])
        elif node.op_type not in CONVOLUTIONS:
            continue
        taken.update(node.input)
    return leading


def _back(graph: onnx.GraphProto, wanted: set[str], encoding: set[str]) -> tuple[set[str], set[str]]:
    """The convolutions that these tensors come from, and the nodes between; not beyond the encoding."""
    last, between = set(), set()
    for node in reversed(graph.node):
        if wanted.isdisjoint(node.output) or node.output[0] in encoding:
            continue
        if node.op_type in CONVOLUTIONS:
            last.add(node.output[0])
        else:
            between.add(node.output[0])
            wanted.update(node.input)
    return last, between


def floats(model: onnx.ModelProto) -> set[str]:
    """Names of all tensors of type float32, by ONNX's inference."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    typed = (*graph.value_info, *graph.input, *graph.output)
    return {value.name for value in typed if value.type.tensor_type.elem_type == TensorProto.FLOAT} | {
        tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT
    }


def drop_unused(graph: onnx.GraphProto) -> None:
    """Remove initializers that no node reads."""
    used = set(_taken(graph))
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _taken(graph: onnx.GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield from node.input
