"""Bundles whose weights were trained further, and what a machine without a GPU says."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from deploy.engines import cuda
from deploy.precision.measure import FLOATS, WEIGHTS
from perception.errors import InputError


def has_gpu() -> bool:
    try:
        return cuda.compute_capability() > 0
    except InputError:
        return False


no_gpu = pytest.mark.skipif(has_gpu(), reason="there is a GPU; tests/deploy/test_engines.py does it for real")


def train_further(graph: onnx.ModelProto, seed: int = 1) -> onnx.ModelProto:
    """The same network with other numbers wherever a layer, a norm or a module has its own, by onnx's reader."""
    other, rng, trained = onnx.ModelProto(), np.random.default_rng(seed), weights(graph)
    other.CopyFrom(graph)
    for tensor in other.graph.initializer:
        if tensor.name in trained:
            values = numpy_helper.to_array(tensor)
            fresh = (values * rng.uniform(0.9, 1.1, values.shape)).astype(values.dtype)
            tensor.CopyFrom(numpy_helper.from_array(fresh, tensor.name))
    return other


def weights(graph: onnx.ModelProto) -> set[str]:
    """Names of the float arrays that only ever are what `WEIGHTS` says, by onnx's reader."""
    places = {}
    for node in graph.graph.node:
        for place, name in enumerate(node.input):
            places.setdefault(name, []).append(place in WEIGHTS.get(node.op_type, ()))
    return {t.name for t in graph.graph.initializer if t.data_type in FLOATS and t.dims and all(places[t.name])}
