"""ONNX models made by hand."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Values = Mapping[str, Any]  # shape by name; of another type than float32: type and shape


def onnx_model(
    nodes: Sequence[onnx.NodeProto], inputs: Values, outputs: Values, weights: Mapping[str, np.ndarray] | None = None
) -> onnx.ModelProto:
    ends = [
        [helper.make_tensor_value_info(name, *(v if isinstance(v, tuple) else (TensorProto.FLOAT, v))) for name, v in i]
        for i in (inputs.items(), outputs.items())
    ]
    constants = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    graph = helper.make_graph(nodes, "by hand", *ends, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
