"""FP16 by the types in the graph, from which alone TensorRT 11 takes the precision.

Convolutions and what lies between them become FP16. These stay FP32:

- the encoding of the sensors and the view transform: a coordinate of 50 m has steps of 3 cm in FP16, a pixel 700 steps
  of half a pixel, and an index of a cell above 2048 is no longer a whole number; with them the canvas that pillars are
  scattered to, and the sum over the cameras;
- what sums over many numbers: softmax, means, normalisation;
- the last layers and the decoding: boxes are metres again, and scores that round to the same number tie for their rank;
- inputs and outputs, so that a bundle is used in the same way at every precision.

`onnxruntime.transformers.float16` and `onnxconverter_common` cast the output of every node that they keep to FP16 and
back for the next one, which rounds the coordinates that must stay exact. Here there are casts only where the precision
changes.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from deploy.precision.graph import drop_unused, floats, places
from perception.errors import InputError

# Operators that sum over many numbers, or whose result is far from the size of what goes in.
WIDE = frozenset(
    {"Softmax", "LogSoftmax", "ReduceSum", "ReduceMean", "ReduceL2", "ReduceSumSquare", "GlobalAveragePool", "Exp"}
    | {"BatchNormalization", "InstanceNormalization", "LayerNormalization", "GroupNormalization", "Pow", "Sqrt", "Log"}
)
# Inputs that stay FP32 by the definition of the operator: region and scales of Resize.
_ALWAYS_SINGLE = {"Resize": (1, 2)}


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of an FP32 graph, in FP16 except for the parts above.

    Raises:
        InputError: a weight is beyond the range of FP16.
    """
    half = onnx.ModelProto()
    half.CopyFrom(model)
    graph, where, single = half.graph, places(model.graph), floats(model)
    kept = where.encoding | where.last | where.decoding
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
        keep = node.output[0] in kept or node.op_type in WIDE
        to = TensorProto.FLOAT if keep else TensorProto.FLOAT16
        for i, name in enumerate(node.input):
            if name in types and i not in _ALWAYS_SINGLE.get(node.op_type, ()):
                node.input[i] = cast(name, to)
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = to
        types |= {name: to for name in node.output if name in single}
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]  # they say FP32
    drop_unused(graph)
    return half


def _half(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    values = numpy_helper.to_array(tensor)
    if np.abs(values).max(initial=0) > np.finfo(np.float16).max:
        raise InputError(f"{tensor.name}: holds {np.abs(values).max():.3g}, beyond FP16; export with another precision")
    return numpy_helper.from_array(values.astype(np.float16), name)
