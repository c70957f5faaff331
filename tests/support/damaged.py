"""Graphs with one damaged weight."""

import onnx
from onnx import numpy_helper


def damaged(graph: onnx.ModelProto) -> onnx.ModelProto:
    """With the weights of one convolution in the trunk upside down."""
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    tensor = next(
        t for t in copy.graph.initializer if "trunk.stages.1.1.conv.layer.weight" in t.name and len(t.dims) > 1
    )
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[::-1].copy(), tensor.name))
    return copy
