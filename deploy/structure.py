"""The structure of a graph: all that must be equal for the plan of one graph to run with the weights of another.

A refittable plan (`perception build --refit`) keeps its layers and takes new weights, by their names in the ONNX graph.
The structure is everything else: nodes, names, shapes and types, and constants that are not weights, such as shapes,
limits and the scales of INT8.
"""

from __future__ import annotations

import hashlib

from onnx import GraphProto, ModelProto, TensorProto

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)

# Operator -> its inputs, from 0, that are trained weights. TensorRT identifies them by their names in the file, except
# those of BatchNormalization, which it combines; its refitter for ONNX combines the new ones likewise.
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
    rest, trained = ModelProto(), trained_weights(model.graph)
    rest.CopyFrom(model)
    for tensor in rest.graph.initializer:
        # Scalars are constants of the computation.
        if tensor.name in trained and tensor.data_type in FLOATS and tensor.dims:
            tensor.CopyFrom(TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims))
    return hashlib.sha256(rest.SerializeToString(deterministic=True)).hexdigest()


def trained_weights(graph: GraphProto) -> set[str]:
    """Names of the tensors that are only used as trained weights."""
    trained: set[str] = set()
    other: set[str] = set()
    for node in graph.node:
        for place, name in enumerate(node.input):
            (trained if place in WEIGHTS.get(node.op_type, ()) else other).add(name)
    return trained - other
