"""Fold batch normalisations behind a sum of convolutions into these convolutions.

The exporter folds a normalisation only into a single convolution. Modules that stay in the graph add their deltas
between convolution and normalisation, which would then remain as another pass over all cells.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from deploy.precision.graph import drop_unused, is_grouped_transpose

_CONVOLUTIONS = {"Conv": 0, "ConvTranspose": 1}  # the axis of the output channels in their weights


def fold_norms(graph: onnx.GraphProto) -> None:
    """Fold every BatchNormalization whose input is a sum of convolutions with no other consumer.

    norm(a + b) = s a + (s b + t) with s = gamma / sqrt(var + eps) and t = beta - s mean, channel by channel.
    """
    for norm in [node for node in graph.node if node.op_type == "BatchNormalization"]:
        constants = {tensor.name: tensor for tensor in graph.initializer}
        convolutions = _summands(graph, norm.input[0], constants)
        if convolutions is None or not all(name in constants for name in norm.input[1:]):
            continue
        gamma, beta, mean, variance = (numpy_helper.to_array(constants[name]) for name in norm.input[1:])
        epsilon = next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5)
        scale = gamma / np.sqrt(variance + epsilon)
        shift = beta - scale * mean
        for i, convolution in enumerate(convolutions):
            _scale(graph, convolution, constants, scale, shift if i == 0 else None)
        for node in graph.node:
            node.input[:] = [norm.input[0] if name == norm.output[0] else name for name in node.input]
        graph.node.remove(norm)
    drop_unused(graph)


def _summands(graph: onnx.GraphProto, name: str, constants: dict[str, onnx.TensorProto]) -> list[onnx.NodeProto] | None:
    """The convolutions whose sum is this tensor; None if other operators add to it or it has several consumers."""
    producers = [node for node in graph.node if name in node.output]
    consumers = [node for node in graph.node if name in node.input]
    if not producers or len(consumers) != 1:
        return None
    (node,) = producers
    if node.op_type == "Add":
        parts = [_summands(graph, part, constants) for part in node.input]
        return None if any(part is None for part in parts) else [conv for part in parts for conv in part or ()]
    foldable = node.op_type in _CONVOLUTIONS and all(part in constants for part in node.input[1:])
    return [node] if foldable and not is_grouped_transpose(node) else None


def _scale(
    graph: onnx.GraphProto,
    node: onnx.NodeProto,
    constants: dict[str, onnx.TensorProto],
    scale: np.ndarray,
    shift: np.ndarray | None,
) -> None:
    """Multiply a convolution's output channels by `scale`, and add `shift`."""
    weight = numpy_helper.to_array(constants[node.input[1]])
    axis = _CONVOLUTIONS[node.op_type]
    scaled = weight * scale.reshape([-1 if i == axis else 1 for i in range(weight.ndim)])
    bias = scale * numpy_helper.to_array(constants[node.input[2]]) if len(node.input) > 2 else None
    if shift is not None:
        bias = shift if bias is None else bias + shift
    names = [f"{node.input[1]}.{node.output[0]}", f"{node.output[0]}.bias"]
    graph.initializer.append(numpy_helper.from_array(scaled.astype(weight.dtype), names[0]))
    if bias is not None:
        graph.initializer.append(numpy_helper.from_array(bias.astype(weight.dtype), names[1]))
    node.input[:] = [node.input[0], *(names if bias is not None else names[:1])]
