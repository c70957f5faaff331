"""What two graphs must have in common for the plan of one to run with the weights of the other.

A plan that was compiled to be refitted (`perception build --refit`) keeps the network's layers and takes other numbers
for their weights, which it knows by their names in the ONNX graph. So everything else of the graph is its structure:
nodes, names, shapes and types, and those constants that are no weights, such as shapes, limits and the scales of INT8.
"""

from __future__ import annotations

import hashlib

from onnx import GraphProto, ModelProto, TensorProto

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)

# Which inputs of an operator, from 0, are trained numbers. TensorRT knows them by their names in the file, except those
# of BatchNormalization: it combines them, and its refitter for ONNX combines the new ones.
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


def structure_sha256(model: ModelProto) -> str:
    """The hash of a graph without its weights: equal for two graphs that differ in their weights alone."""
    rest, trained = ModelProto(), _weights(model.graph)
    rest.CopyFrom(model)
    for tensor in rest.graph.initializer:
        # A number without a shape is a constant of the computation.
        if tensor.name in trained and tensor.data_type in FLOATS and tensor.dims:
            tensor.CopyFrom(TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims))
    return hashlib.sha256(rest.SerializeToString(deterministic=True)).hexdigest()


def _weights(graph: GraphProto) -> set[str]:
    """Names of the tensors that nodes read as trained numbers only."""
    trained: set[str] = set()
    other: set[str] = set()
    for node in graph.node:
        for place, name in enumerate(node.input):
            (trained if place in WEIGHTS.get(node.op_type, ()) else other).add(name)
    return trained - other
