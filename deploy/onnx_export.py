"""Export a torch network to an ONNX graph of standard operators; only the number of pillars is dynamic."""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from onnx.external_data_helper import uses_external_data
from onnxscript import opset18 as op
from onnxscript.function_libs.torch_lib.ops.nn import aten_gelu
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from deploy.engine import EngineState
from deploy.precision.graph import drop_unused, is_grouped_transpose
from perception.errors import InputError
from perception.frame import Arrays, Conditions
from perception.model import PerceptionModel
from perception.sensors.inputs import PILLARS
from perception.session import KeptState, run_with_state
from perception.state import states_of

_CONVOLUTIONS = {"Conv": 0, "ConvTranspose": 1}  # the axis of the output channels in their weights


def fold_norms(graph: onnx.GraphProto) -> None:
    """Fold every BatchNormalization whose input is a sum of convolutions: a layer's and its modules'.

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


OPSET = 18  # TensorRT 10 reads 9-20, TensorRT 11 9-25


def to_onnx(model: PerceptionModel, inputs: dict[str, np.ndarray], outputs: Sequence[str]) -> onnx.ModelProto:
    """Export `model.predict` for inputs of these shapes, with any number of pillars from one on.

    The same checkpoint gives the same bytes.
    """
    tensors = tuple(torch.from_numpy(array) for array in inputs.values())
    pillars = torch.export.Dim("pillars")
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # the exporter prints its progress
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _Graph(model, list(inputs)).eval(),
            tensors,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=(tuple({1: pillars} if name in PILLARS else None for name in inputs),),
            custom_translation_table={torch.ops.aten.gelu.default: _gelu},
            optimize=True,
            verbose=False,
        )
    assert program is not None  # None only if the exporter writes a file
    graph: onnx.ModelProto = program.model_proto
    foreign = sorted(
        {f"{n.domain}::{n.op_type}" for n in graph.graph.node if n.domain} | {f.name for f in graph.functions}
    )
    if foreign:
        raise InputError(f"the graph needs operators outside the ONNX standard: {', '.join(foreign)}")
    # The exporter adds the Python source of every node, with paths of this machine; it is a third of the file.
    for item in (graph.graph, *graph.graph.node, *graph.graph.value_info, *graph.graph.input, *graph.graph.output):
        del item.metadata_props[:]
    del graph.metadata_props[:]
    fold_norms(graph.graph)
    for output in states_of(outputs).values():
        _set_apart(graph.graph, output)
    graph.producer_name, graph.producer_version = "tessera", ""
    return graph


def serialise(graph: onnx.ModelProto) -> bytes:
    """The content of the ONNX file; InputError if weights would stay in other files, which no hash covers."""
    attributes = (attribute for node in graph.graph.node for attribute in node.attribute)
    for tensor in (*graph.graph.initializer, *(each.t for each in attributes)):
        if uses_external_data(tensor):
            raise InputError(f"the graph keeps {tensor.name} in another file; a bundle has all weights in its graphs")
    content: bytes = graph.SerializeToString(deterministic=True)
    return content


def _set_apart(graph: onnx.GraphProto, output: str) -> None:
    """Make an output a copy of the tensor that other nodes read, so that INT8 can round what they read, but not it."""
    for node in graph.node:
        if output in node.output:
            for other in graph.node:
                other.input[:] = [f"{output}.read" if name == output else name for name in other.input]
            node.output[:] = [f"{output}.read" if name == output else name for name in node.output]
            graph.node.append(onnx.helper.make_node("Identity", [f"{output}.read"], [output], name=output))
            return


def _gelu(x: Any, approximate: str = "none") -> Any:
    """GELU in the order of operators that engines fuse into one; ONNX has an operator of its own from opset 20 on."""
    if approximate != "none":
        return aten_gelu(x, approximate)
    return op.Mul(op.Mul(x, op.Add(op.Erf(op.Div(x, math.sqrt(2.0))), 1.0)), 0.5)


def run(
    model: PerceptionModel, inputs: Mapping[str, np.ndarray], conditions: Conditions | None = None
) -> tuple[dict[str, np.ndarray], int]:
    """Run the model in torch; returns its outputs and the number of floating-point operations."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        outputs = model.predict(tensors, () if conditions is None else [conditions])
    return {name: value.numpy() for name, value in outputs.items()}, counter.get_total_flops()


class TorchEngine:
    """A model in torch as an engine (`deploy.engine.Engine`), with the modules of its router or of some conditions."""

    def __init__(self, model: PerceptionModel, conditions: Conditions | None = None) -> None:
        self.model, self.conditions = model, conditions

    def new_state(self) -> KeptState | None:
        zeros = {name: state.numpy() for name, state in self.model.no_states(1).items()}
        return KeptState(zeros) if zeros else None

    def run(self, inputs: Arrays, state: EngineState | None = None) -> dict[str, np.ndarray]:
        given = dict(inputs) if state is None else {**inputs, **state.read()}
        outputs, _ = run(self.model, given, self.conditions)
        if isinstance(state, KeptState):
            state.replace(outputs)
        return outputs


def find_frame_with_state(model: PerceptionModel, golden: Mapping[str, Arrays], conditions: Conditions) -> Arrays:
    """The inputs of the first golden frame, for a model with a memory those of the first that has states, with them."""
    engine = TorchEngine(model, conditions)
    state = engine.new_state()
    for frame in golden.values():
        if state is None:
            return frame
        if frame["state_valid"].any():
            return {**frame, **state.read()}
        run_with_state(engine.run, frame, state)
    raise ValueError("no golden frame has a state")


class _Graph(nn.Module):
    """`PerceptionModel.predict` with positional tensors instead of a dict, as an ONNX graph has them."""

    def __init__(self, model: PerceptionModel, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, list(names)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        inputs = dict(zip(self.names, tensors, strict=True))
        if "images" in inputs:
            # TensorRT accepts uint8 only as the input of a Cast.
            inputs["images"] = inputs["images"].float()
        return tuple(self.model.predict(inputs).values())
