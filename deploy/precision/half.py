"""Convert an FP32 graph to FP16 by its types, from which TensorRT 11 takes the precision.

Convolutions and the nodes between them become FP16. These stay FP32:

- the encoding of the sensors and the view transform: a coordinate of 50 m has steps of 3 cm in FP16, a pixel 700 steps
  of half a pixel, and cell indices above 2048 are not exact; also the canvas that pillars are scattered to, and the sum
  over the cameras;
- operators that sum over many numbers: softmax, means, normalisation;
- the last layers and the decoding: boxes are in metres, and scores that round to the same number would tie in rank;
- inputs and outputs, so that bundles are used in the same way at every precision.

`onnxruntime.transformers.float16` and `onnxconverter_common` are not used: they cast the output of every FP32 node to
FP16 and back, which rounds the coordinates. Here casts are inserted only where the precision changes.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from deploy.precision.graph import drop_unused, floats, places
from perception.errors import InputError

# Operators that sum over many numbers, or whose outputs are much larger or smaller than their inputs.
FP32_OPERATORS = frozenset(
    {"Softmax", "LogSoftmax", "ReduceSum", "ReduceMean", "ReduceL2", "ReduceSumSquare", "GlobalAveragePool", "Exp"}
    | {"BatchNormalization", "InstanceNormalization", "LayerNormalization", "GroupNormalization", "Pow", "Sqrt", "Log"}
)
# Inputs that ONNX defines as FP32: region and scales of Resize.
_FP32_INPUTS = {"Resize": (1, 2)}


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of an FP32 graph in FP16, except for the parts above.

    Raises:
        InputError: a weight is beyond the range of FP16.
    """
    half = onnx.ModelProto()
    half.CopyFrom(model)
    graph, parts, single = half.graph, places(model.graph), floats(model)
    kept = parts.encoding | parts.last | parts.decoding
    constants = {tensor.name: tensor for tensor in graph.initializer}
    types = dict.fromkeys(single, TensorProto.FLOAT)
    nodes: list[onnx.NodeProto] = []
    casts: dict[tuple[str, int], str] = {}

    def cast(name: str, to: int) -> str:
        if types[name] == to:
            return name
        if (name, to) not in casts:
            casts[name, to] = typed = f"{name}.{'half' if to == TensorProto.FLOAT16 else 'single'}"
            if name in constants:
                graph.initializer.append(_half(constants[name], typed))
            else:
                nodes.append(helper.make_node("Cast", [name], [typed], name=typed, to=to))
        return casts[name, to]

    for node in graph.node:
        keep = node.output[0] in kept or node.op_type in FP32_OPERATORS
        to = TensorProto.FLOAT if keep else TensorProto.FLOAT16
        for i, name in enumerate(node.input):
            if name in types and i not in _FP32_INPUTS.get(node.op_type, ()):
                node.input[i] = cast(name, to)
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = to
        types |= {name: to for name in node.output if name in single}
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]  # its types are FP32
    drop_unused(graph)
    return half


def _half(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    values = numpy_helper.to_array(tensor)
    if np.abs(values).max(initial=0) > np.finfo(np.float16).max:
        raise InputError(f"{tensor.name}: holds {np.abs(values).max():.3g}, beyond FP16; export with another precision")
    return numpy_helper.from_array(values.astype(np.float16), name)
