"""Low-rank modules of a slot as one, and normalisations behind them: the same numbers with fewer operations."""

import numpy as np
import onnx
import torch
from computations import assert_near, places, randomize, slot_with, trained
from exported import QUIET, bundle, checkpoint_of, modular
from graphs import onnx_model
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.export import export
from deploy.fold_batchnorm import fold_norms
from perception.modules.computation.low_rank import LowRank
from perception.modules.route import Route


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_stacked_low_rank_modules_compute_the_sum_of_their_weighted_deltas(data):
    layer, x, _ = data.draw(places("low_rank"))
    other = LowRank(layer, rank=3, alpha=0.5)
    randomize(other)
    modules = {"a": trained("low_rank", layer), "b": other, "c": trained("low_rank", layer)}
    weights = {"a": torch.tensor([0.3]), "b": 1.0, "r": torch.tensor([-0.7]), "s": torch.tensor([2.0])}  # not c
    slot = slot_with(layer, Route(weights, static=False), **modules, r=trained("rescale", layer))
    expected = slot(x)
    slot.stack_low_rank()
    assert list(slot.computations) == ["r"]
    assert_near(slot(x), expected)
    slot.route = Route({"r": 1.0})
    assert_near(slot(x), layer(x) + slot.computations["r"].output(x, layer, None) - layer(x))


def test_one_low_rank_module_stays_as_it_is():
    layer = torch.nn.Linear(3, 4).double()
    slot = slot_with(layer, a=trained("low_rank", layer))
    slot.stack_low_rank()
    assert slot.stack is None
    assert list(slot.computations) == ["a"]


def test_a_banked_slot_of_low_rank_modules_costs_two_convolutions_however_many_they_are(tmp_path):
    names = ("rain", "fog", "night", "singapore")
    modules = [{"name": n, "kind": "low_rank", "slots": ["trunk.*"], "rank": 2, "when": [n]} for n in names]
    checkpoint = checkpoint_of(modular("four", modules))
    operators = export(checkpoint, tmp_path / "b", [[], *([n] for n in names)], console=QUIET).manifest.operators
    base = bundle().manifest.operators
    slots = 12
    grown = {name: n - base.get(name, 0) for name, n in operators.items() if n != base.get(name, 0)}
    assert grown.pop("Conv") + grown.pop("ConvTranspose") == 2 * slots
    assert grown.pop("Add") == slots
    assert grown.pop("Mul") == slots
    assert "BatchNormalization" not in grown


def outputs(model: onnx.ModelProto) -> np.ndarray:
    x = np.random.default_rng(1).standard_normal((2, 3, 5, 6)).astype(np.float32)
    return OnnxRuntimeEngine(model.SerializeToString()).run({"x": x})["y"]


def example(last: str) -> onnx.ModelProto:
    """relu(norm(conv(x) + up(x) + conv(x))), behind which is a `last` node of the sum."""
    rng = np.random.default_rng(0)
    shapes = {"a": (4, 3, 1, 1), "b": (3, 4, 1, 1), "c": (4, 3, 1, 1), "bias": (4,), "gamma": (4,), "beta": (4,)}
    weights = {name: rng.standard_normal(shape, np.float32) for name, shape in (shapes | {"mean": (4,)}).items()}
    weights["variance"] = rng.uniform(0.5, 2, 4).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "a", "bias"], ["p"]),
        helper.make_node("ConvTranspose", ["x", "b"], ["q"]),
        helper.make_node("Conv", ["x", "c"], ["r"]),
        helper.make_node("Add", ["p", "q"], ["pq"]),
        helper.make_node("Add", ["pq", "r"], ["sum"]),
        helper.make_node("BatchNormalization", ["sum", "gamma", "beta", "mean", "variance"], ["n"], epsilon=1e-3),
        helper.make_node("Relu", ["n"], ["m"]),
        helper.make_node("Add", ["m", last], ["y"]),
    ]
    return onnx_model(nodes, {"x": [2, 3, 5, 6]}, {"y": [2, 4, 5, 6]}, weights)


def test_a_normalisation_folds_into_all_that_is_summed_up_before_it():
    model = example("m")
    before = outputs(model)
    fold_norms(model.graph)
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node].count("BatchNormalization") == 0
    assert {tensor.name for tensor in model.graph.initializer}.isdisjoint({"gamma", "beta", "mean", "variance", "a"})
    np.testing.assert_allclose(outputs(model), before, rtol=1e-5, atol=1e-5)


def test_a_normalisation_of_a_sum_that_is_used_elsewhere_too_stays():
    model = example("sum")
    before = model.SerializeToString()
    fold_norms(model.graph)
    assert model.SerializeToString() == before
