"""Quantise convolutions to INT8 with explicit Q/DQ nodes, in the two layouts that the engines need.

`TENSORRT`: symmetric INT8 activations in front of the convolutions, float biases. TensorRT supports no zero points, and
rejects an int32 bias behind a DequantizeLinear. `CPU`: UINT8 activations with a zero point, also behind the
convolutions, and int32 biases, from which ONNX Runtime makes its integer kernels; it has them for Conv, but not for
ConvTranspose. Weights are symmetric INT8 with a scale per output channel in both.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import QDQQuantizer, QuantType
from onnxruntime.quantization.calibrate import TensorData  # 1.23, the last for Python 3.10, has it here alone

from deploy.precision.graph import CONVOLUTIONS, is_grouped_transpose, places

Ranges = Mapping[str, tuple[float, float]]


@dataclass(frozen=True, eq=False)
class Layout:
    """Where an engine needs Q/DQ nodes, as arguments of ONNX Runtime's quantiser."""

    operators: tuple[str, ...]
    activations: QuantType
    options: Mapping[str, Any]


TENSORRT = Layout(
    operators=tuple(CONVOLUTIONS),
    activations=QuantType.QInt8,
    options={
        "ActivationSymmetric": True,
        "OpTypesToExcludeOutputQuantization": tuple(CONVOLUTIONS),
        "QuantizeBias": False,
        "QDQDisableWeightAdjustForInt32Bias": True,
    },
)
CPU = Layout(operators=("Conv", "Relu"), activations=QuantType.QUInt8, options={})


def quantisable(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """The convolutions with constant weights that may become INT8, by output: all but the last layers and the memory.

    What rounds the state rounds it in every frame; the memory has a percent or two of the network's operations.
    """
    parts, constants = places(graph), {tensor.name for tensor in graph.initializer}
    found = {node.output[0]: node for node in graph.node if node.op_type in CONVOLUTIONS and node.input[1] in constants}
    exact = parts.last | parts.memory
    return {output: node for output, node in found.items() if output not in exact and not is_grouped_transpose(node)}


def activations(graph: onnx.GraphProto) -> set[str]:
    """The tensors whose ranges `quantise` needs: inputs and outputs of the `quantisable` convolutions."""
    layers = quantisable(graph).values()
    return {node.input[0] for node in layers} | {_activation_output(graph, node) for node in layers}


def quantise(model: onnx.ModelProto, layers: Collection[str], ranges: Ranges, layout: Layout) -> onnx.ModelProto:
    """A copy of an FP32 graph with some of its `quantisable` convolutions in INT8, those that the layout supports.

    They are given by their outputs; `calibrate.ranges` measures the ranges, of `activations`.
    """
    named = onnx.ModelProto()  # the quantiser selects nodes by name, which the exporter does not guarantee
    named.CopyFrom(model)
    limits = {
        name: TensorData(lowest=np.float32(low), highest=np.float32(high)) for name, (low, high) in ranges.items()
    }
    chosen = set(layers)
    for node in named.graph.node:
        node.name = node.output[0]
        if node.name in layers:
            output = _activation_output(named.graph, node)
            chosen.add(output)
            limits[node.name] = limits[output]  # the quantiser fuses the ReLU into the QuantizeLinear behind it
    quantiser = QDQQuantizer(
        named,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=layout.activations,
        tensors_range=limits,
        nodes_to_quantize=[],
        nodes_to_exclude=[node.name for node in named.graph.node if node.name not in chosen],
        op_types_to_quantize=layout.operators,
        extra_options=dict(layout.options),
    )
    result: onnx.ModelProto = quantiser.quantize_model()
    _keep_memory_exact(result.graph, model.graph)
    quantiser.model.topological_sort()
    result.producer_name, result.producer_version = model.producer_name, model.producer_version
    del result.metadata_props[:], result.graph.value_info[:]
    return result


def _keep_memory_exact(quantised: onnx.GraphProto, exact: onnx.GraphProto) -> None:
    """Nodes of the memory read what other nodes of it give as it is, also where the trunk reads the same rounded."""
    memory, before = places(exact).memory, {node.output[0]: node.input for node in exact.node}
    for node in quantised.node:
        if node.output[0] in memory:
            pairs = zip(node.input, before[node.output[0]], strict=True)
            node.input[:] = [own if own in memory else given for given, own in pairs]


def _activation_output(graph: onnx.GraphProto, node: onnx.NodeProto) -> str:
    """The output of a convolution, or of the ReLU behind it if that is its only consumer."""
    consumers = [other for other in graph.node if node.output[0] in other.input]
    return consumers[0].output[0] if [other.op_type for other in consumers] == ["Relu"] else node.output[0]
