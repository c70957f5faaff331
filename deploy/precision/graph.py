"""Find the part of the network that each node of an exported graph belongs to, by following tensors, not by names.

sensors ──> encoding ──> convolutions and nodes between them ────> last layers ──> decoding ──> outputs
                   └──<── view transform ──<── decoding ──<── last layers ──<──┘
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx
from onnx import TensorProto

from perception.state import MOTION_INPUTS, states_of

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
STEERING = frozenset({"route", "conditions"})  # inputs that select modules; all others come from sensors


@dataclass(frozen=True)
class NetworkParts:
    """The nodes of a graph by part of the network; each is identified by its first output.

    Attributes:
        encoding: between sensors or constants and the convolutions: points, pillars, projection, lift.
        heads: last convolutions before the outputs.
        view_transform: last convolutions before the view transform.
        decoding: behind heads and view transform: peaks, boxes, probabilities, depths.
        memory: between the states and the next ones: the motion, the moved state, and what is mixed.
    """

    encoding: frozenset[str]
    heads: frozenset[str]
    view_transform: frozenset[str]
    decoding: frozenset[str]
    memory: frozenset[str]

    @property
    def last(self) -> frozenset[str]:
        return self.heads | self.view_transform


def places(graph: onnx.GraphProto) -> NetworkParts:
    """Trace forward from the sensors, and back from the outputs and the view transform, to the convolutions.

    What a convolution reads is the end of the encoding, also for a residual connection around that convolution.
    """
    constant = {tensor.name for tensor in graph.initializer}
    convolved = {node.input[0] for node in graph.node if node.op_type in CONVOLUTIONS}
    memory = _memory(graph)
    states = states_of(tensor.name for tensor in graph.output)
    sensed = {tensor.name for tensor in graph.input}.difference(STEERING, MOTION_INPUTS, states)
    encoding, joined = set(), set()
    for node in graph.node:  # in topological order
        if node.output[0] in memory:
            continue
        inputs = {name for name in node.input if name}
        if inputs <= constant:
            constant.update(node.output)
        elif inputs & sensed and node.op_type not in CONVOLUTIONS:
            sensed.update(set(node.output) - convolved)
            joined |= inputs
        else:
            continue
        encoding.add(node.output[0])
    stops = encoding | memory
    ends, decoding = _trace_back(graph, {tensor.name for tensor in graph.output}, stops)
    view_transform, lifted = _trace_back(graph, joined, stops)
    heads = ends - _feeding_convolutions(graph)  # the fused map gives an output (conditions), but also feeds the trunk
    parts = (encoding, heads, view_transform, decoding | lifted, memory)
    return NetworkParts(*(frozenset(part) for part in parts))


def _memory(graph: onnx.GraphProto) -> set[str]:
    """First outputs of the nodes that depend on a state or the motion, and on which a next state depends."""
    states = states_of(tensor.name for tensor in graph.output)
    behind, before = {*MOTION_INPUTS, *states}, {*states.values()}
    for node in graph.node:
        if not behind.isdisjoint(node.input):
            behind.update(node.output)
    for node in reversed(graph.node):
        if not before.isdisjoint(node.output):
            before.update(node.input)
    return {node.output[0] for node in graph.node if not behind.isdisjoint(node.output) and node.output[0] in before}


def _feeding_convolutions(graph: onnx.GraphProto) -> set[str]:
    """First outputs of the nodes whose results reach another convolution.

    TopK is not followed: it selects the cells at which boxes are regressed, but does not feed that convolution.
    """
    consumed: set[str] = set()
    feeding = set()
    for node in reversed(graph.node):
        if node.op_type == "TopK":
            continue
        if not consumed.isdisjoint(node.output):
            feeding.add(node.output[0])
        elif node.op_type not in CONVOLUTIONS:
            continue
        consumed.update(node.input)
    return feeding


def _trace_back(graph: onnx.GraphProto, wanted: set[str], stops: set[str]) -> tuple[set[str], set[str]]:
    """The last convolutions before these tensors, and the nodes between; stops at these nodes."""
    last, between = set(), set()
    for node in reversed(graph.node):
        if wanted.isdisjoint(node.output) or node.output[0] in stops:
            continue
        if node.op_type in CONVOLUTIONS:
            last.add(node.output[0])
        else:
            between.add(node.output[0])
            wanted.update(node.input)
    return last, between


def is_grouped_transpose(node: onnx.NodeProto) -> bool:
    """Whether this is a ConvTranspose whose output channels are spread over two axes of its weights."""
    return node.op_type == "ConvTranspose" and any(a.name == "group" and a.i > 1 for a in node.attribute)


def floats(model: onnx.ModelProto) -> set[str]:
    """Names of all float32 tensors, by ONNX's type inference."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    typed = (*graph.value_info, *graph.input, *graph.output)
    return {value.name for value in typed if value.type.tensor_type.elem_type == TensorProto.FLOAT} | {
        tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT
    }


def drop_unused(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
