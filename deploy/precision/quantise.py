"""INT8 by explicit Q/DQ, in the two layouts that the engines want, from one calibration.

`TENSORRT`: symmetric INT8 activations in front of the convolutions, the bias stays a float: TensorRT knows no zero
point, and refuses an int32 bias behind a DequantizeLinear. `CPU`: UINT8 activations with a zero point, Q/DQ behind the
convolutions as well, an int32 bias: what ONNX Runtime makes its integer kernels of, which it has for Conv but not for
ConvTranspose. Weights are symmetric INT8 with a scale for each output channel in both.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from deploy.precision.graph import CONVOLUTIONS, drop_unused, places

Ranges = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Layout:
    """What an engine makes integer kernels of."""

    operators: frozenset[str]
    activations: type[np.int8] | type[np.uint8]  # int8: symmetric
    outputs: bool  # Q/DQ behind a convolution too, where no other follows
    bias: bool  # as int32


TENSORRT = Layout(CONVOLUTIONS, np.int8, outputs=False, bias=False)
CPU = Layout(frozenset({"Conv"}), np.uint8, outputs=True, bias=True)


def quantisable(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """By output, the convolutions with constant weights that may become INT8: all but the last layers."""
    last, constants = places(graph).last, {tensor.name for tensor in graph.initializer}
    found = {node.output[0]: node for node in graph.node if node.op_type in CONVOLUTIONS and node.input[1] in constants}
    return {output: node for output, node in found.items() if output not in last and not _grouped(node)}


def activations(graph: onnx.GraphProto) -> set[str]:
    """The tensors whose ranges `quantise` needs: inputs and outputs of the `quantisable` convolutions."""
    layers = quantisable(graph).values()
    return {node.input[0] for node in layers} | {_behind(graph, node) for node in layers}


def quantise(model: onnx.ModelProto, layers: Collection[str], ranges: Ranges, layout: Layout) -> onnx.ModelProto:
    """A copy of an FP32 graph with these of its `quantisable` convolutions in INT8, as far as the layout has them.

    Args:
        layers: outputs of the convolutions.
        ranges: as `calibrate.ranges` measured them on `activations`.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    chosen = [node for node in graph.node if node.output[0] in layers and node.op_type in layout.operators]
    rounded = {node.input[0] for node in chosen}
    if layout.outputs:
        rounded |= {_behind(graph, node) for node in chosen}
    edit = _Edit(graph)
    for node in chosen:
        scale = _scale(*ranges[node.input[0]], layout)[0]
        node.input[1], weight_scale = edit.weight(node, scale if layout.bias else None)
        if layout.bias and len(node.input) == 3:
            node.input[2] = edit.bias(node, scale * weight_scale)
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = f"{name}.dequantised" if name in rounded else name
        edit.nodes.append(node)
        for name in rounded.intersection(node.output):
            edit.round(name, *_scale(*ranges[name], layout))
    del graph.node[:]
    graph.node.extend(edit.dequantise + edit.nodes)
    drop_unused(graph)
    return result


class _Edit:
    """New nodes and constants of a graph."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self.weights: dict[str, tuple[str, np.ndarray]] = {}
        self.dequantise: list[onnx.NodeProto] = []  # of constants
        self.nodes: list[onnx.NodeProto] = []

    def constant(self, name: str, values: np.ndarray) -> str:
        self.graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    def weight(self, node: onnx.NodeProto, input_scale: float | None) -> tuple[str, np.ndarray]:
        """The convolution's weights in INT8: name of what dequantises them, and (O,) scales.

        Given the input's scale, scales of tiny weights are made large enough for the bias to fit into int32.
        """
        name = node.input[1]
        if name not in self.weights:
            values, axis = self.constants[name], 1 if node.op_type == "ConvTranspose" else 0
            largest = np.abs(values).max(axis=tuple(i for i in range(values.ndim) if i != axis))
            scale = np.where(largest > 0, largest / 127, 1)
            if input_scale is not None and len(node.input) == 3:
                scale = np.maximum(scale, np.abs(self.constants[node.input[2]]) / (input_scale * 2**30))
            scale = scale.astype(np.float32)
            whole = np.rint(values / scale.reshape([-1 if i == axis else 1 for i in range(values.ndim)]))
            self._dequantise(name, whole.astype(np.int8), scale, axis)
            self.weights[name] = f"{name}.dequantised", scale
        return self.weights[name]

    def bias(self, node: onnx.NodeProto, scale: np.ndarray) -> str:
        """The convolution's bias in int32, with the scale of the products of input and weights."""
        whole = np.rint(self.constants[node.input[2]] / scale).clip(-(2**31), 2**31 - 1).astype(np.int32)
        return self._dequantise(f"{node.output[0]}.bias", whole, scale.astype(np.float32), 0)

    def _dequantise(self, name: str, whole: np.ndarray, scale: np.ndarray, axis: int) -> str:
        inputs = [self.constant(f"{name}.{whole.dtype}", whole), self.constant(f"{name}.scale", scale)]
        inputs.append(self.constant(f"{name}.zero", np.zeros(len(scale), whole.dtype)))
        result = f"{name}.dequantised"
        self.dequantise.append(helper.make_node("DequantizeLinear", inputs, [result], name=result, axis=axis))
        return result

    def round(self, name: str, scale: float, zero: np.ndarray) -> None:
        """Put Q/DQ behind a tensor."""
        given = [self.constant(f"{name}.scale", np.array(scale, np.float32)), self.constant(f"{name}.zero", zero)]
        for operator, source, result in (
            ("QuantizeLinear", name, f"{name}.quantised"),
            ("DequantizeLinear", f"{name}.quantised", f"{name}.dequantised"),
        ):
            self.nodes.append(helper.make_node(operator, [source, *given], [result], name=result))


def _grouped(node: onnx.NodeProto) -> bool:
    """Whether this is a ConvTranspose whose output channels are spread over two axes of its weights."""
    return node.op_type == "ConvTranspose" and any(a.name == "group" and a.i > 1 for a in node.attribute)


def _scale(low: float, high: float, layout: Layout) -> tuple[float, np.ndarray]:
    """Scale and zero point of an activation."""
    if layout.activations is np.int8:
        return max(-low, high) / 127 or 1.0, np.array(0, np.int8)
    scale = (high - low) / 255 or 1.0
    return scale, np.array(round(-low / scale), np.uint8)


def _behind(graph: onnx.GraphProto, node: onnx.NodeProto) -> str:
    """The tensor that comes out of a convolution, or of the ReLU behind it if nothing else takes it."""
    takers = [other for other in graph.node if node.output[0] in other.input]
    return takers[0].output[0] if [other.op_type for other in takers] == ["Relu"] else node.output[0]
