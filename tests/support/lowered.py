"""Small networks at every precision, made once for all the tests of this process."""

from functools import cache

import numpy as np
import onnx
import torch
from networks import config, model
from vocabulary import RIG

from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.golden import synthetic_frame
from deploy.onnx_export import to_onnx
from deploy.precision.calibrate import ranges
from deploy.precision.convert import convert
from deploy.precision.quantise import CPU, TENSORRT, Ranges, activations, quantisable, quantise
from perception.config import parse_config
from perception.frame import Conditions
from perception.model import PerceptionModel
from perception.sensors.inputs import InputSpec, prepare

OUTPUTS = (*(f"detection/{name}" for name in ("boxes", "scores", "labels", "attributes")), "map/probabilities")
ROUTES = (Conditions(), Conditions(weather="rain"), Conditions(light="night"))
MODULES = [
    {"name": "rain", "kind": "low_rank", "slots": ["trunk.*", "heads.*"], "rank": 2, "when": ["rain"]},
    {"name": "night", "kind": "batch_norm", "slots": ["camera.*"], "when": ["night"]},
]

Arrays = dict[str, np.ndarray]


@cache
def network(kind: str = "folded") -> PerceptionModel:
    """Random weights, `folded`: no modules; `banked`: those of `MODULES`, switched by an input."""
    if kind == "folded":
        return model().deployed()
    content = config().model_dump(mode="json") | {"modules": MODULES}
    torch.manual_seed(0)
    modular = PerceptionModel(parse_config(content, "banked"))
    modular.load_state_dict(model().state_dict(), strict=False)
    with torch.no_grad():
        for name, parameter in modular.named_parameters():
            if "computations" in name:
                parameter += 0.05 * torch.randn_like(parameter)
    return modular.deployed(*ROUTES)


def frame(seed: int, kind: str = "folded") -> Arrays:
    inputs = prepare(synthetic_frame("ego", RIG, seed), InputSpec.of(config()))
    return inputs | ({"route": np.array([[0.5, 1]], np.float32)} if kind == "banked" else {})


@cache
def single(kind: str = "folded") -> onnx.ModelProto:
    """The graph in FP32."""
    return to_onnx(network(kind), frame(0, kind), OUTPUTS)


@cache
def measured(kind: str = "folded") -> Ranges:
    return ranges(single(kind), activations(single(kind).graph), [frame(seed, kind) for seed in (1, 2)])


@cache
def graph(precision: str, kind: str = "folded") -> onnx.ModelProto:
    """fp32, fp16; or all of INT8 in the layout `int8` of TensorRT or `int8.cpu`."""
    if precision == "fp16":
        return convert(single(kind), "fp16", (), network(kind).tasks).graphs["model.onnx"]
    layout = {"int8": TENSORRT, "int8.cpu": CPU}.get(precision)
    whole = single(kind)
    return quantise(whole, [*quantisable(whole.graph)], measured(kind), layout) if layout else whole


def run(graph: onnx.ModelProto, inputs: Arrays) -> Arrays:
    return OnnxRuntimeEngine(graph.SerializeToString()).run(inputs)
