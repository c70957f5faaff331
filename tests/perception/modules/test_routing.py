"""Routing by facts, what choosers compute, and routes in the whole model."""

import copy
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import ROUTED, Net, assert_same, frame_inputs, little, module, softmax
from rich.console import Console
from torch import Tensor, nn
from vocabulary import CONDITION_VALUES, CONDITIONS

from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.golden import differences
from deploy.onnx_export import to_onnx
from deploy.precision.measure import LEAST
from perception.frame import Conditions
from perception.model import PerceptionModel, Trace
from perception.modules.computation.weight_delta import LowRank
from perception.modules.route import Route
from perception.modules.routing import learned as learned_routing
from perception.modules.routing.fixed import make_fixed_routes
from perception.modules.routing.learned import select_learned as learned_routes
from perception.modules.routing.pooling import MAX_DEVIATIONS, CellFeatures, PooledFeatures, RunningNorm
from perception.modules.status import routing_table

EXACT: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}
known_conditions = st.builds(Conditions, **{k: st.sampled_from([None, *v]) for k, v in CONDITIONS.items()})
facts = st.sampled_from([*CONDITION_VALUES, "lidar", "no-lidar", "cameras", "no-cameras", "detection", "map"])
REFUSED = [{"lidar", "no-lidar"}, {"cameras", "no-cameras"}, {"detection", "map"}]
asked_for = st.sets(facts, max_size=3).filter(lambda asked: not any(pair <= asked for pair in REFUSED))
tagged = st.tuples(known_conditions, st.booleans(), st.booleans())


@settings(max_examples=60)
@given(st.lists(tagged, min_size=1, max_size=4), st.lists(asked_for, min_size=1, max_size=3))
def test_fixed_routing_runs_a_module_where_all_that_it_asks_for_holds(frames, asks):
    modules = [LowRank.Options(name=f"m{i}", rank=1, when=tuple(asked)) for i, asked in enumerate(asks)]
    bank = Net(modules).bank
    sensors = {"lidar": torch.tensor([f[1] for f in frames]), "cameras": torch.tensor([f[2] for f in frames])}
    routes = make_fixed_routes(bank, ["detection", "map"], [c for c, *_ in frames], sensors)
    assert sorted(task for _, tasks in routes for task in tasks) == ["detection", "map"]
    assert (len(routes) == 2) == bool(set().union(*asks) & {"detection", "map"})
    for route, tasks in routes:
        for i, asked in enumerate(asks):
            weight = torch.as_tensor(route.weights.get(f"m{i}", 0.0)).expand(len(frames))
            for (conditions, lidar, cameras), w in zip(frames, weight.tolist(), strict=True):
                there = {"lidar" if lidar else "no-lidar", "cameras" if cameras else "no-cameras"}
                assert w == (asked <= {*conditions.known(), *there, *tasks})


def test_a_route_is_shown_by_slot_and_module() -> None:
    network = Net(ROUTED)
    cells = torch.linspace(0, 1, 6).reshape(1, 1, 2, 3)
    route = Route({"rain": torch.tensor([0.75, 0.25]), "seeing": 1.0}, {"heads.two": {"rain": cells}})
    console = Console(width=100)
    with console.capture() as capture:
        console.print(routing_table(route, network.bank.slots))
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capture.get().splitlines() if "│" in line]
    assert lines == [["trunk.one", "0.75", "0.00", "1.00"], ["heads.two", "0.50", "", "0.00"]]


@pytest.mark.parametrize("cells", [(), (3, 4)])
def test_running_estimates_are_those_of_all_that_was_seen(cells):
    torch.manual_seed(0)
    features, sizes = RunningNorm(5).double(), torch.arange(1.0, 6.0).reshape(5, *(1 for _ in cells))
    seen = torch.randn(40, 2, 5, *cells, dtype=torch.float64) * sizes + 7
    for batch in seen:
        out = features(batch)  # by what was seen so far, in training as well
    hat = (batch.movedim(1, -1) - features.mean) / features.variance.sqrt()
    torch.testing.assert_close(out, hat.movedim(-1, 1).clamp(-MAX_DEVIATIONS, MAX_DEVIATIONS), rtol=1e-5, atol=1e-5)
    rows = seen.transpose(0, 2).flatten(1)
    torch.testing.assert_close(features.mean, rows.mean(dim=1), rtol=1e-12, atol=0)
    torch.testing.assert_close(features.variance, rows.var(dim=1, correction=0), rtol=1e-12, atol=0)


def test_later_batches_weigh_more_from_the_hundredth_on_and_in_evaluation_nothing_moves():
    features = RunningNorm(2)
    for value in [0.0] * 200 + [1.0] * 100:
        features(torch.full((2, 2), value))
    assert features.mean.tolist() == pytest.approx([1 - 0.99**100] * 2, rel=1e-4)
    features.eval()
    features.mean.copy_(torch.tensor([1.0, -2.0]))
    features.variance.copy_(torch.tensor([4.0, 0.25]))
    x = torch.tensor([[3.0, -2.5], [1.0, 98.0]])
    torch.testing.assert_close(features(x), torch.tensor([[1.0, -1.0], [0.0, MAX_DEVIATIONS]]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(features(x[:1]), features(x)[:1])
    assert features.batches.item() == 300


def test_routers_see_mean_deviation_and_maximum_of_each_channel_or_the_cell_itself():
    torch.manual_seed(0)
    pooled, cells, x = PooledFeatures(4).eval(), CellFeatures(4).eval(), torch.randn(2, 4, 3, 5)
    flat, (_, linear, _), (_, mix, _) = x.flatten(2), pooled.layers, cells.layers
    three = torch.cat([flat.mean(dim=2), flat.std(dim=2, correction=0), flat.amax(dim=2)], dim=1)
    expected = (three @ linear.weight.T + linear.bias).relu()
    torch.testing.assert_close(pooled(x), expected, rtol=1e-4, atol=1e-4)
    expected = (torch.einsum("hc,bcij->bhij", mix.weight[..., 0, 0], x) + mix.bias[:, None, None]).relu()
    torch.testing.assert_close(cells(x), expected, rtol=1e-4, atol=1e-4)


@st.composite
def random_logits(draw: st.DrawFn) -> Tensor:
    """(B, N, 2, 3) in float64, often with ties."""
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 5)), 2, 3)
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    tied = draw(st.booleans())
    return torch.from_numpy(rng.integers(-2, 3, shape).astype(float) if tied else rng.normal(0, 3, shape))


@settings(max_examples=50)
@given(random_logits(), st.integers(1, 6))
def test_top_k_is_the_softmax_over_the_k_first_of_a_stable_sort(logits, k):
    expected = np.zeros(logits.shape)
    for b, i, j in itertools.product(range(len(logits)), range(2), range(3)):
        values = logits[b, :, i, j].numpy()
        best = np.argsort(-values, kind="stable")[:k]
        expected[b, best, i, j] = softmax(values[best])
    actual = learned_routing.top_k(logits, k)
    torch.testing.assert_close(actual, torch.from_numpy(expected), **EXACT)
    assert ((actual != 0).sum(dim=1) == min(k, logits.shape[1])).all()
    assert torch.equal(learned_routing.top_k(logits, logits.shape[1]), learned_routing.soft(logits))
    assert torch.equal(learned_routing.top_k(logits, 1), learned_routing.hard(logits))
    assert torch.equal(learned_routing.hard(logits).argmax(dim=1), torch.from_numpy(logits.numpy().argmax(axis=1)))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_gumbel_is_one_hot_forward_and_has_the_gradient_of_the_relaxation(temperature: float) -> None:
    torch.manual_seed(0)
    logits, g, v = (torch.randn(2, 4, 3, dtype=torch.float64) for _ in range(3))
    weights = learned_routing.gumbel(logits.requires_grad_(), temperature, g)
    assert torch.equal(weights, nn.functional.one_hot((logits + g).argmax(dim=1), 4).transpose(1, 2).double())
    relaxed = ((logits + g) / temperature).softmax(dim=1)
    found, expected = (torch.autograd.grad((each * v).sum(), logits)[0] for each in (weights, relaxed))
    torch.testing.assert_close(found, expected, **EXACT)


@pytest.mark.parametrize("draw", [learned_routing.sample, lambda logits: learned_routing.gumbel(logits, 0.7)])
def test_frequencies_are_the_softmax(draw: Any) -> None:
    torch.manual_seed(0)
    n, p = 40_000, torch.tensor([0.5, 0.3, 0.15, 0.05, 0.0], dtype=torch.float64)
    counts = draw(p.log().expand(n, -1)).sum(dim=0)
    assert counts.sum() == n
    assert ((counts - n * p).abs() <= 4 * (n * p * (1 - p)).sqrt()).all()


@pytest.mark.parametrize("baseline", [0.0, 2.5, -7.0])
def test_reinforce_enumerated_over_all_joint_choices_is_the_gradient_of_the_expected_cost(baseline: float) -> None:
    """One frame, three options at each of two places: nine joint choices, each with a cost of its own."""
    torch.manual_seed(1)
    logits = torch.randn(1, 3, 2, dtype=torch.float64, requires_grad=True)
    costs = torch.randn(3, 3, dtype=torch.float64)
    p = logits[0].softmax(dim=0)  # N P
    (expected,) = torch.autograd.grad(torch.einsum("i,j,ij->", p[:, 0], p[:, 1], costs), logits)
    estimate = torch.zeros_like(logits)
    for i, j in itertools.product(range(3), range(3)):
        chosen = nn.functional.one_hot(torch.tensor([[i, j]]), 3).transpose(1, 2)
        loss = learned_routing.reinforce(learned_routing.log_probability(logits, chosen), costs[i, j][None], baseline)
        estimate += (p[i, 0] * p[j, 1]).detach() * torch.autograd.grad(loss, logits)[0]
    torch.testing.assert_close(estimate, expected, **EXACT)


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(2, 4), st.integers(1, 3), st.booleans())
def test_balance_counts_frames_and_cells_by_place(seed, b, n, places, by_cell):
    """Against loops over places; the first option of the last place is impossible."""
    torch.manual_seed(seed)
    logits = torch.randn(b, n, places, *((2, 3) if by_cell else ()), dtype=torch.float64)
    logits[:, 0, -1] = -math.inf
    expected = []
    for place in range(places):
        there = list(range(1 if place == places - 1 else 0, n))
        tokens = [(i, slice(None), place, *at) for at in np.ndindex(logits.shape[3:]) for i in range(b)]
        own = [logits[token].numpy()[there] for token in tokens]
        best, probabilities = np.array([np.eye(len(there))[t.argmax()] for t in own]), np.array([*map(softmax, own)])
        expected.append(len(there) * (best.mean(axis=0) * probabilities.mean(axis=0)).sum())
    assert float(learned_routing.gshard(logits)) == pytest.approx(np.mean(expected), rel=1e-12, abs=1e-12)


def copied_base(model: PerceptionModel, to: PerceptionModel) -> PerceptionModel:
    own = model.state_dict()
    to.load_state_dict({key: own[key] for key in to.state_dict()})
    return to


ALL = [
    module("rain", "rain"), module("night", "night"), module("boston", "boston"), module("blind", "no-lidar"),
    module("cam", slots=("camera.*",)),
]  # fmt: skip
BY_TASK = [module("find", "detection", slots=("trunk.*",)), module("draw", "map", slots=("trunk.*",))]


@torch.no_grad()
def test_a_mixed_batch_equals_its_frames_one_by_one() -> None:
    model = little(ALL, camera=True)
    inputs = frame_inputs(model, 1, 2, 3)
    inputs["pillar_counts"][1] = 0  # frame 1 has no LiDAR, frame 2 no pictures
    inputs["pillar_points"][1] = 0
    inputs["pillar_cells"][1] = 32 * 32
    inputs["images"][2], inputs["image_from_reference"][2] = 0, 0
    wet = Conditions(weather="rain", light="day")
    tags = [Conditions(weather="rain", light="night", city="boston"), Conditions(), wet]
    together = model(inputs, tags)
    for i, tag in enumerate(tags):
        alone = model({name: value[i : i + 1] for name, value in inputs.items()}, [tag])
        for name, value in alone.items():
            torch.testing.assert_close(together[name][i], value[0], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_tasks_with_their_own_modules_in_the_trunk_get_their_own_passes_and_options() -> None:
    model, chosen = little(BY_TASK), little(BY_TASK, {"kind": "learned"})
    inputs = frame_inputs(model, 1)
    trace = Trace()
    outputs = model(inputs, trace=trace)
    assert len(trace.routes) == 2
    model.bank.activate("find")
    found = model(inputs)
    model.bank.activate("draw")
    drawn = model(inputs)
    assert not torch.allclose(found["map/logits"], drawn["map/logits"])
    for name, value in outputs.items():
        assert torch.equal(value, (drawn if name == "map/logits" else found)[name])
    chosen(inputs, trace=(trace := Trace()))
    for route, own, other in zip(trace.routes, ("find", "draw"), ("draw", "find"), strict=True):
        weights = route.at("trunk.stage0.0")
        assert weights[other].item() == 0
        assert 0 < weights[own].item() < 1


@torch.no_grad()
def test_the_chooser_serves_the_slots_after_the_fusion_and_tags_the_others() -> None:
    """With all logits on `rain`, the model is the one that runs it after the fusion alone, whatever the tags say."""
    modules = [module("rain", "rain", slots=("lidar.*", "trunk.*")), module("night", "night")]
    model = little(modules, {"kind": "learned", "choose": "gumbel"})
    fixed = copied_base(model, little(modules))
    nn.init.constant_(model.chooser.options["rain"].bias, 1e4)
    inputs = frame_inputs(model, 1)
    served = {name: {"rain": 1.0} for name in model.bank.slots if name.startswith(("trunk.", "heads."))}
    for tags, before in (([], {}), ([Conditions(weather="rain", light="night")], {"rain": 1.0})):
        fixed.bank.active = Route(before, served)
        assert_same(model(inputs, tags), fixed(inputs))
    model.bank.activate("night")
    fixed.bank.activate("night")
    assert_same(model(inputs), fixed(inputs))


def test_routing_losses_of_a_training_batch_teach_the_chooser() -> None:
    model = little(ALL[:4], {"kind": "learned", "choose": "reinforce", "balance": 0.1, "supervise": 0.5}).train()
    inputs = frame_inputs(model, 1, 2)
    wet, dark = {"weather": "rain", "light": "day"}, {"weather": "clear", "light": "night"}
    trace = Trace()
    model(inputs, [Conditions(**wet, city="boston"), Conditions(**dark, city="singapore")], trace=trace)
    losses = model.routing_losses(trace.routes, torch.tensor([1.0, 2.0]))
    assert losses.keys() == {"balance", "supervision", "reinforce"}
    chooser = dict(model.chooser.named_parameters())
    for loss in losses.values():
        gradients = torch.autograd.grad(loss, list(chooser.values()), retain_graph=True)
        assert sum(g.abs().sum() for g in gradients) > 0
    evenness = model.routing_balance(trace.routes)
    assert losses["balance"].item() == pytest.approx(0.1 * evenness["gshard"])
    (route,) = learned_routes(trace.routes)
    assert evenness == {"gshard": float(learned_routing.gshard(route.logits))}
    assert copy.deepcopy(model).state_dict().keys() == model.state_dict().keys()  # in the middle of training, too


@torch.no_grad()
def test_a_router_has_nothing_to_choose_for_a_task_that_reads_the_pictures() -> None:
    model = little(ALL[:2], {"kind": "learned", "balance": 0.1}, recognising=True)
    inputs, tags = frame_inputs(model, 1), [Conditions(weather="clear", light="day", city="boston")]
    trace, alone = Trace(), Trace()
    model.train()(inputs, tags, trace=trace)
    assert model.routing_losses(trace.routes)
    assert model.routing_balance(trace.routes)
    assert all(name.startswith("conditions/") for name in model(inputs, tags, ("conditions",), trace=alone))
    assert len(alone.routes) == 1
    assert model.routing_losses(alone.routes) == model.routing_balance(alone.routes) == {}


@pytest.mark.slow("exports a whole model with a chooser")
@torch.no_grad()
def test_an_exported_model_keeps_its_chooser_and_folds_what_is_before_it() -> None:
    modules = [module("rain", "rain", slots=("trunk.*",)), module("blind", "no-lidar", slots=("trunk.*",))]
    routing = {"kind": "learned", "choose": "top_k", "k": 2, "level": "slot"}
    model, wet = little([*modules, module("beam", "rain", slots=("lidar.*",))], routing), Conditions(weather="rain")
    folded = model.folded(wet)
    assert (folded.bank.folded, list(folded.bank.modules)) == (("beam",), ["rain", "blind"])

    def arrays(tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
        return {name: value.numpy() for name, value in tensors.items()}

    inputs, padding = frame_inputs(model, 1), {"pillar_points": 0, "pillar_counts": 0, "pillar_cells": 32 * 32}
    expected, tolerances = arrays(folded.predict(inputs)), LEAST.all(model.tasks)
    assert differences(arrays(model.predict(inputs, [wet])), expected, tolerances) == []
    engine = OnnxRuntimeEngine(to_onnx(folded, arrays(inputs), list(expected)).SerializeToString())
    for each in (inputs, {name: torch.full_like(inputs[name], value) for name, value in padding.items()}):
        assert differences(arrays(folded.predict(each)), engine.run(arrays(each)), tolerances) == []
    folded(each, trace=(trace := Trace()))
    weights = [trace.routes[0].at(name).get("blind", 0.0) for name in folded.bank.slots]
    assert any(float(torch.as_tensor(weight).max()) > 0 for weight in weights)


@pytest.mark.parametrize(
    ("slots", "sensors"),
    [(["lidar.*"], {"lidar"}), (["camera.*"], {"cameras"}), (["lidar.*", "camera.*"], set()), (["trunk.*"], set())],
)
def test_a_module_in_one_sensors_branch_runs_only_with_the_sensor(slots: list[str], sensors: set[str]) -> None:
    network = little([module("own", "rain", slots=tuple(slots))], camera=True)
    assert network.bank.requirements("own") == {"rain"} | sensors
