"""What each computation function computes, against arithmetic by hand, peft and what it becomes in a graph."""

import copy
import itertools
from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from computations import Place, assert_near, delta_of, make, make_trained, place_of, places, randomize, slot_with
from hypothesis import given, settings
from hypothesis import strategies as st
from lowered import onnx_model
from onnx import helper
from torch import Tensor, nn
from torch.nn import functional as F
from vocabulary import CONDITIONS

from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.onnx_export import fold_norms, to_onnx
from perception.modules.bank import Bank
from perception.modules.computation.channelwise import ScaleShift
from perception.modules.computation.computation import Affine
from perception.modules.computation.weight_delta import LowRank, SparseDelta
from perception.modules.route import Route
from perception.modules.routing.fixed import SteeredRouter
from perception.modules.slot import Slot
from perception.modules.spec import COMPUTATIONS


def normalized(y: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    """Batch normalisation with stored statistics, by its formula."""
    numbers = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    mean, var, gamma, beta = (t[:, None, None] for t in numbers)
    return gamma * (y - mean) / (var + norm.eps).sqrt() + beta


def pixelwise(matrix: Tensor, y: Tensor) -> Tensor:
    """matrix (P, C) times the channels of each cell of y (B, C, H, W)."""
    return torch.stack([sum(row[c] * y[:, c] for c in range(y.shape[1])) for row in matrix], dim=1)


SLIM = nn.Conv2d(3, 5, (3, 1), (1, 2), (1, 0), bias=False)


@pytest.mark.parametrize("layer", [nn.Conv2d(3, 5, 3, 2, 1), SLIM, nn.Conv2d(3, 5, 1), nn.Linear(3, 5)], ids=str)
def test_low_rank_equals_peft(layer):
    """With neither dilation, padding mode, groups nor transposed: those fold as they compute (test_contract.py)."""
    from peft import LoraConfig, get_peft_model  # it takes seconds

    torch.manual_seed(0)
    layer = layer.double()
    x = torch.randn(*((2, 4, 3) if isinstance(layer, nn.Linear) else (2, 3, 8, 9)), dtype=torch.float64)
    ours = LowRank(layer, 2, 5.0)
    randomize(ours)
    config = LoraConfig(r=2, lora_alpha=5, target_modules=["0"])
    theirs = get_peft_model(nn.Sequential(copy.deepcopy(layer)), config).double()
    tuned = theirs.base_model.model[0]
    with torch.no_grad():
        tuned.lora_A["default"].weight.copy_(ours.a.weight)
        tuned.lora_B["default"].weight.copy_(ours.b.weight)
    slot = slot_with(layer, m=ours)
    assert_near(slot(x), theirs(x))
    slot.fold(slot.current.route)
    assert_near(slot.layer.weight, theirs.merge_and_unload()[0].weight)


@settings(max_examples=40)
@given(st.data())
def test_stacked_low_rank_modules_compute_the_sum_of_their_weighted_deltas(data):
    layer, x, _ = data.draw(places("low_rank"))
    one, other = slot_with(layer, a=make_trained("low_rank", layer)), LowRank(layer, rank=3, alpha=0.5)
    randomize(other)
    one.stack_low_rank()
    assert (one.stack, list(one.computations)) == (None, ["a"])  # one alone stays as it is
    modules = {"a": make_trained("low_rank", layer), "b": other, "c": make_trained("low_rank", layer)}
    weights = {"a": torch.tensor([0.3]), "b": 1.0, "r": torch.tensor([-0.7]), "s": torch.tensor([2.0])}  # not c
    slot = slot_with(layer, Route(weights, static=False), **modules, r=make_trained("rescale", layer))
    expected = slot(x)
    slot.stack_low_rank()
    assert list(slot.computations) == ["r"]
    assert_near(slot(x), expected)
    slot.current.route = Route({"r": 1.0})
    assert_near(slot(x), layer(x) + slot.computations["r"].output(x, layer, None) - layer(x))


class Banked(nn.Module):
    """Two slots with these low-rank modules, whose weights are an input."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.norm = Slot("one", nn.Conv2d(3, 4, 3, padding=1, bias=False)), nn.BatchNorm2d(4)
        self.two = Slot("two", nn.ConvTranspose2d(4, 4, 2, 2))
        self.bank = Bank(self, CONDITIONS)
        for name in names:
            self.bank.add(LowRank.Options(name=name, slots=("*",), rank=2))
        randomize(self.eval())
        self.router = SteeredRouter(self.bank, ())
        for slot in self.bank.slots.values():
            slot.stack_low_rank()

    def predict(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        ((route, _),) = self.router(inputs, ["detection"])
        with self.bank.current.running(route):
            return {"y": self.two(self.norm(self.one(inputs["x"])).relu())}


def test_a_banked_slot_of_low_rank_modules_costs_two_convolutions_however_many_they_are():
    x = np.random.default_rng(0).standard_normal((1, 3, 6, 6), np.float32)
    route = np.array([[1, 0, 0.5, 2]], np.float32)
    four = Banked("a", "b", "c", "d")
    graph = to_onnx(four, {"x": x, "route": route}, ["y"])
    counts = Counter(node.op_type for node in graph.graph.node)
    assert "BatchNormalization" not in counts
    assert counts["Conv"] + counts["ConvTranspose"] == 2 + 2 * 2  # the layers' own, and two for each slot
    assert (counts["Add"], counts["Mul"]) == (2, 2)
    with torch.no_grad():
        expected = four.predict({"x": torch.from_numpy(x), "route": torch.from_numpy(route)})["y"]
    found = OnnxRuntimeEngine(graph.SerializeToString()).run({"x": x, "route": route})["y"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def example(last: str) -> onnx.ModelProto:
    """relu(norm(conv(x) + up(x) + conv(x))), behind which is a `last` node of the sum."""
    rng = np.random.default_rng(0)
    shapes = {"a": (4, 3, 1, 1), "b": (3, 4, 1, 1), "c": (4, 3, 1, 1), "bias": 4, "gamma": 4, "beta": 4, "mean": 4}
    weights = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    weights["variance"] = rng.uniform(0.5, 2, 4).astype(np.float32)
    norm = ["sum", "gamma", "beta", "mean", "variance"]
    nodes = [
        helper.make_node("Conv", ["x", "a", "bias"], ["p"]),
        helper.make_node("ConvTranspose", ["x", "b"], ["q"]),
        helper.make_node("Conv", ["x", "c"], ["r"]),
        helper.make_node("Add", ["p", "q"], ["pq"]),
        helper.make_node("Add", ["pq", "r"], ["sum"]),
        helper.make_node("BatchNormalization", norm, ["n"], epsilon=1e-3),
        helper.make_node("Relu", ["n"], ["m"]),
        helper.make_node("Add", ["m", last], ["y"]),
    ]
    return onnx_model(nodes, {"x": [2, 3, 5, 6]}, {"y": [2, 4, 5, 6]}, weights)


def test_a_normalisation_folds_into_all_that_is_summed_up_before_it_unless_the_sum_is_used_elsewhere():
    model, x = example("m"), np.random.default_rng(1).standard_normal((2, 3, 5, 6), np.float32)
    before = OnnxRuntimeEngine(model.SerializeToString()).run({"x": x})["y"]
    fold_norms(model.graph)
    onnx.checker.check_model(model)
    assert "BatchNormalization" not in [node.op_type for node in model.graph.node]
    assert {tensor.name for tensor in model.graph.initializer}.isdisjoint({"gamma", "beta", "mean", "variance", "a"})
    after = OnnxRuntimeEngine(model.SerializeToString()).run({"x": x})["y"]
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)
    model = example("sum")
    content = model.SerializeToString()
    fold_norms(model.graph)
    assert model.SerializeToString() == content


def test_sparse_delta_changes_the_weights_in_its_mask_and_no_others():
    place = place_of(nn.Conv2d)
    module = make("sparse_delta", place.layer)
    slot = slot_with(place.layer, m=module)
    loss = slot(place.x).square().sum()
    dense = place.layer.weight.clone().requires_grad_()  # the gradient that all weights would have
    F.conv2d(place.x, dense, place.layer.bias, padding=1).square().sum().backward()
    loss.backward()
    assert_near(module.values.grad, dense.grad.flatten()[module.indices])
    torch.optim.SGD(slot.parameters(), lr=0.1).step()
    count = round(0.3 * 72)
    assert len(module.indices.unique()) == module.values.numel() == count
    moved = module.delta().flatten() != 0
    assert moved.nonzero().flatten().tolist() == module.indices.tolist()
    assert place.layer.weight.flatten()[moved].abs().min() >= place.layer.weight.flatten()[~moved].abs().max()
    assert_near(slot(place.x), F.conv2d(place.x, place.layer.weight + module.delta(), place.layer.bias, padding=1))


@settings(max_examples=50)
@given(st.integers(1, 100))
def test_sparse_delta_has_the_share_that_was_asked_for(percent):
    layer = nn.Linear(10, 10)
    assert len(SparseDelta(layer, percent / 100).values) == percent
    assert len(SparseDelta(layer, percent / 1e6).values) == 1


def test_the_mask_of_a_sparse_delta_moves_to_what_scores_most():
    place = place_of(nn.Linear)
    module = make_trained("sparse_delta", place.layer)
    score = torch.randn_like(place.layer.weight)
    module.select(score)
    assert not delta_of(module, place).any()
    nn.init.ones_(module.values)
    assert torch.equal(module.delta(), (score >= score.flatten().sort().values[-len(module.values)]).double())


def test_a_batch_norm_replaces_the_layers_normalisation_and_a_step_moves_its_own_tensors_and_no_others():
    layer, x, _ = place_of(nn.BatchNorm2d)
    module = make_trained("batch_norm", layer)
    own, before = normalized(x, module.norm), normalized(x, layer)
    assert_near(slot_with(layer, m=module)(x), own)
    assert_near(slot_with(layer, Route({"m": 0.3}), m=module)(x), 0.7 * before + 0.3 * own)

    slot = slot_with(layer, m=make("batch_norm", layer))
    before, norm = copy.deepcopy(slot.state_dict()), slot.computations["m"].norm
    slot.computations.train()
    y = slot(x)
    mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
    gamma, beta = layer.weight[:, None, None], layer.bias[:, None, None]
    hat = (x - mean[:, None, None]) / (var + layer.eps).sqrt()[:, None, None]
    assert_near(y, gamma * hat + beta)
    y.square().sum().backward()
    torch.optim.SGD(slot.parameters(), lr=0.01).step()
    assert_near(norm.running_mean, 0.9 * layer.running_mean + 0.1 * mean)
    assert_near(norm.running_var, 0.9 * layer.running_var + 0.1 * x.var((0, 2, 3), correction=1))
    assert_near(norm.weight, layer.weight - 0.01 * (2 * y * hat).sum((0, 2, 3)))
    assert_near(norm.bias, layer.bias - 0.01 * (2 * y).sum((0, 2, 3)))
    still = {name for name, tensor in slot.state_dict().items() if torch.equal(tensor, before[name])}
    assert still == {f"layer.{name}" for name in layer.state_dict()}


def bilinear(p: Tensor, rows: int, columns: int) -> Tensor:
    """p (1, C, h, w) stretched, cell centres over cell centres, cell by cell."""
    out = p.new_zeros(1, p.shape[1], rows, columns)
    for i in range(rows):
        for j in range(columns):
            down = max((i + 0.5) * p.shape[2] / rows - 0.5, 0.0)
            across = max((j + 0.5) * p.shape[3] / columns - 0.5, 0.0)
            r, c = int(down), int(across)
            r1, c1, u, v = min(r + 1, p.shape[2] - 1), min(c + 1, p.shape[3] - 1), down - r, across - c
            upper = (1 - v) * p[0, :, r, c] + v * p[0, :, r, c1]
            lower = (1 - v) * p[0, :, r1, c] + v * p[0, :, r1, c1]
            out[0, :, i, j] = (1 - u) * upper + u * lower
    return out


def test_a_prompt_is_added_or_concatenated_to_the_input():
    for mode in ("zeros", "reflect"):
        layer, x, _ = place_of(nn.Conv2d, stride=(2, 1), padding_mode=mode)
        module = make_trained("prompt", layer)
        assert_near(slot_with(layer, m=module)(x), layer(x + bilinear(module.map, 4, 5)))
    layer, x, _ = place_of(nn.Conv2d, dilation=2, padding=2, padding_mode="circular")
    module = make_trained("concatenated", layer)
    p = bilinear(module.map, 4, 5).expand(4, -1, -1, -1)
    weight = torch.cat([layer.weight, module.mix.weight], dim=1)
    padded = F.pad(torch.cat([x, p], dim=1), (2, 2, 2, 2), mode="circular")
    assert_near(slot_with(layer, m=module)(x), F.conv2d(padded, weight, layer.bias, dilation=2))


def test_a_series_adapter_normalises_mixes_and_normalises_again():
    layer, x, _ = place_of(nn.Conv2d)
    module, y = make_trained("series_adapter", layer), layer(x)
    mixed = y + pixelwise(module.a.weight[..., 0, 0], normalized(y, module.before))
    assert_near(slot_with(layer, m=module)(x), normalized(mixed, module.after))

    slot = Slot("s", layer)  # without a call of `train` or `eval` a new one normalises by the stored statistics
    new = slot.computations["m"] = make("series_adapter", layer)
    slot.current.route = Route({"m": 1.0})
    assert torch.equal(slot(x), y)
    new.train()  # and by the batch while it trains, but only at first
    nn.init.normal_(new.a.weight)
    variance = y.var((0, 2, 3), correction=0, keepdim=True) + new.before.eps
    hat = (y - y.mean((0, 2, 3), keepdim=True)) / variance.sqrt()
    assert_near(delta_of(new, Place(layer, x, None)), pixelwise(new.a.weight[..., 0, 0], hat))


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (3, 5)])
def test_a_parallel_adapter_folds_into_the_middle_tap(size):
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 4, size, 2, (size[0] // 2, size[1] // 2), bias=False, dtype=torch.float64)
    module, x = make_trained("parallel_adapter", layer), torch.randn(1, 2, 7, 8, dtype=torch.float64)
    assert_near(delta_of(module, Place(layer, x, None)), pixelwise(module.a.weight[..., 0, 0], x[..., ::2, ::2]))
    change = module.fold(Affine.of(layer), layer, None).weight - layer.weight
    assert_near(change[..., size[0] // 2, size[1] // 2], module.a.weight[..., 0, 0])
    change[..., size[0] // 2, size[1] // 2] = 0
    assert not change.any()


def test_a_bottleneck_adds_what_passes_its_relu():
    layer, x, _ = place_of(nn.Conv2d)
    module = make_trained("bottleneck", layer)
    down, up = module.down.weight[..., 0, 0], module.up.weight[..., 0, 0]
    assert down.shape == (2, 4)
    y = layer(x)
    assert_near(slot_with(layer, m=module)(x), y + pixelwise(up, pixelwise(down, y).clamp(min=0)))


def test_scale_and_shift_act_on_channels():
    for kind, case in itertools.product(COMPUTATIONS["scale_shift"].layers, ("rescale", "scale_shift")):
        place = place_of(kind)
        module, y = make_trained(case, place.layer), place.layer(place.x)
        channels = -1 if kind is nn.Linear else 1
        expected = y.clone()
        for c in range(4):
            shift = module.shift[c] if case == "scale_shift" else 0
            expected.select(channels, c).mul_(module.scale[c]).add_(shift)
        assert_near(slot_with(place.layer, m=module)(place.x), expected)


def test_film_under_a_fixed_condition_is_scale_and_shift_and_is_linear_in_the_condition():
    place = place_of(nn.ConvTranspose2d, groups=2)
    film, fixed_one = make_trained("film", place.layer), ScaleShift(place.layer)
    z, other = torch.randn(2, 1, 7, dtype=torch.float64)
    with torch.no_grad():
        fixed_one.scale.copy_(1 + film.scale @ z[0])
        fixed_one.shift.copy_(film.shift @ z[0])
    assert_near(delta_of(film, place._replace(z=z)), delta_of(fixed_one, place))
    parts = delta_of(film, place._replace(z=z)) + 2 * delta_of(film, place._replace(z=other))
    assert_near(delta_of(film, place._replace(z=z + 2 * other)), parts)
    for unknown in (None, torch.zeros(2, 7)):
        assert not delta_of(film, place._replace(z=unknown)).any()


def test_a_hypernetwork_under_a_fixed_condition_is_low_rank_with_the_factor_it_wrote():
    place = place_of(nn.Conv2d, stride=2, padding_mode="reflect")
    hyper, low = make_trained("hypernetwork", place.layer), LowRank(place.layer, 2)
    z = torch.randn(1, 7, dtype=torch.float64)
    written = hyper.generate.weight @ (hyper.embed.weight @ z[0]).clamp(min=0)  # B row by row
    with torch.no_grad():
        low.a.weight.copy_(hyper.a.weight)
        low.b.weight.copy_(written.reshape(4, 2, 1, 1))
    assert_near(delta_of(hyper, place._replace(z=z)), delta_of(low, place))
    assert delta_of(low, place).any()
    for unknown in (None, torch.zeros(2, 7)):
        assert not delta_of(hyper, place._replace(z=unknown)).any()
