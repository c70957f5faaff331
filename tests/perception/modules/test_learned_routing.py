"""The learned router: its route with and without sensors, losses, learning and export."""

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import EVERYWHERE, ROUTED, Net, make_learned_routing, randomise, weights_at
from torch import Tensor, nn

from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.onnx_export import to_onnx
from perception.errors import InputError
from perception.frame import Conditions
from perception.modules.computation.weight_delta import LowRank
from perception.modules.route import Route
from perception.modules.routing import learned as learned_routing

EXACT: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}
LEVELS = ("global", "slot", "cell")
CHOOSERS = ("soft", "top_k", "gumbel", "reinforce")
every_level = pytest.mark.parametrize("level", LEVELS)
frames = st.lists(st.booleans(), min_size=1, max_size=4)


def maps(n: int) -> Tensor:
    return torch.randn(n, 4, 6, 8, dtype=torch.float64)


def seen(*lidar: bool) -> dict[str, Tensor]:
    return {"lidar": torch.tensor(lidar)}


@settings(max_examples=60)
@given(frames, st.sampled_from(CHOOSERS), st.sampled_from(LEVELS), st.booleans(), st.integers(0, 100))
def test_a_module_whose_sensor_is_missing_is_never_chosen(lidar, chooser, level, training, seed):
    network = randomise(Net(ROUTED, make_learned_routing(chooser, level, k=2))).double().train(training)
    torch.manual_seed(seed)
    there = torch.tensor(lidar)
    network(maps(len(lidar)), {"lidar": there})
    for slot in ("trunk.one", "heads.two"):
        weights = weights_at(network, slot)
        assert (weights["seeing"][~there] == 0).all()
        if "blind" in weights:
            assert (weights["blind"][there] == 0).all()
    chosen = network.route.chosen
    torch.testing.assert_close(chosen.sum(dim=1), torch.ones_like(chosen[:, 0]), **EXACT)
    assert (chosen >= 0).all()
    if level == "slot":
        assert (chosen[:, network.chooser.names.index("blind") + 1, 1] == 0).all()  # heads.two does not have it


@every_level
@pytest.mark.parametrize("chooser", CHOOSERS)
def test_evaluation_leaves_nothing_to_chance(chooser: str, level: str) -> None:
    network = randomise(Net(ROUTED, make_learned_routing(chooser, level, k=2)), 0.3).double().eval()
    x, sensors = maps(20), seen(*[True] * 20)
    draws = []
    for training, seed in itertools.product([False, True], [1, 2]):
        torch.manual_seed(seed)
        draws.append(network.train(training)(x, sensors))
    assert torch.equal(draws[0], draws[1])
    assert torch.equal(draws[2], draws[3]) == (chooser in ("soft", "top_k"))


@pytest.mark.parametrize("at_one", [True, False])
def test_at_level_slot_each_slot_follows_its_own_logits(at_one: bool) -> None:
    """Row 0 of a head is for trunk.one, row 1 for heads.two, also where trunk.one holds no module."""
    slots = EVERYWHERE if at_one else ("heads.*",)
    network = Net(
        [LowRank.Options(name=name, slots=slots, rank=1) for name in ("a", "b")], make_learned_routing("gumbel", "slot")
    ).eval()
    network.chooser.options["a"].bias.data = torch.tensor([3.0, 1.0])
    network.chooser.options["b"].bias.data = torch.tensor([1.0, 3.0])
    network(torch.randn(1, 4, 6, 8), seen(True))
    assert {name: w.item() for name, w in weights_at(network, "heads.two").items()} == {"a": 0, "b": 1}
    if at_one:
        assert {name: w.item() for name, w in weights_at(network, "trunk.one").items()} == {"a": 1, "b": 0}


@every_level
def test_a_module_added_later_keeps_the_fixed_route_until_update(level: str) -> None:
    network = randomise(Net(ROUTED[:1], make_learned_routing("soft", level, supervise=1.0))).double().eval()
    x, sensors = maps(2), seen(True, True)
    dry, before = network(x, sensors), copy.deepcopy(network.chooser.state_dict())
    network.bank.add(LowRank.Options(name="fog", rank=2, when=("fog",)))
    nn.init.normal_(network.one.computations["fog"].b.weight)
    assert torch.equal(network(x, sensors), dry)
    tags = [Conditions(weather="fog"), Conditions(weather="clear")]
    mixed = network(x, sensors, tags)
    assert torch.equal(mixed[1], dry[1])
    assert not torch.allclose(mixed[0], dry[0])
    network.chooser.update()
    assert network.chooser.names == ["rain", "fog"]
    after = network.chooser.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)
    network.bank.delete("fog")
    network.chooser.update()
    assert network.chooser.state_dict().keys() == before.keys()
    assert torch.equal(network(x, sensors), dry)


def test_options_may_be_named_and_must_exist() -> None:
    assert Net(ROUTED, make_learned_routing(modules=["blind"])).chooser.names == ["blind"]
    with pytest.raises(InputError, match=r"routing\.modules: no module 'snow' is after the fusion; there are: rain, b"):
        Net(ROUTED, make_learned_routing(modules=["blind", "snow"]))


@every_level
def test_supervision_is_the_cross_entropy_with_what_the_tags_choose_and_the_place_has(level: str) -> None:
    """The base where it is dry, and nothing is asked where the tags leave the weather or the light open."""
    modules = [ROUTED[0], LowRank.Options(name="night", slots=("heads.*",), rank=2, when=("night",))]
    network = randomise(Net(modules, make_learned_routing("soft", level, supervise=2.0))).double()
    tags = [Conditions(weather=w, light=li) for w, li in (("rain", "night"), ("clear", "night"), ("rain", None))]
    network(maps(3), seen(True, True, True), tags)
    both, night, nothing = ([0, 0.5, 0.5], [0, 0, 1.0], [0.0, 0, 0])
    wanted = [[[0, 1, 0], both], [[1, 0, 0], night], [nothing] * 2] if level == "slot" else [[both], [night], [nothing]]
    target = network.route.target[..., 0, 0] if level == "cell" else network.route.target
    torch.testing.assert_close(target, torch.tensor(wanted, dtype=target.dtype).transpose(1, 2), **EXACT)
    logs = network.route.logits.log_softmax(dim=1)
    if level == "slot":
        by_hand = -(logs[0, 1, 0] + logs[1, 0, 0] + (logs[0, 1, 1] + logs[0, 2, 1]) / 2 + logs[1, 2, 1]) / 4
    else:
        by_hand = -((logs[0, 1] + logs[0, 2]) / 2 + logs[1, 2]).mean() / 2
    losses = network.chooser.losses([network.route], None)
    assert losses.keys() == {"supervision"}
    torch.testing.assert_close(losses["supervision"], 2 * by_hand, **EXACT)


def test_reinforce_compares_with_the_running_mean_of_earlier_costs() -> None:
    network = randomise(Net(ROUTED, make_learned_routing("reinforce"))).double().train()
    x, sensors = maps(4), seen(*[True] * 4)
    means: list[float] = []
    for step in range(30):
        torch.manual_seed(step)
        network(x, sensors)
        costs = torch.rand(4, dtype=torch.float64) + 5
        baseline = 0.0
        for n, mean in enumerate(means, 1):
            baseline += max(1 / n, 0.05) * (mean - baseline)
        logs = network.route.logits.log_softmax(dim=1)[..., 0]
        picked = logs[torch.arange(4), network.route.chosen[..., 0].argmax(dim=1)]
        expected = ((costs - baseline) * picked).mean()
        loss = network.chooser.losses([network.route], costs)["reinforce"]
        torch.testing.assert_close(loss, expected, **EXACT)
        means.append(costs.mean().item())
    with pytest.raises(ValueError, match="REINFORCE needs the costs"):
        network.chooser.losses([network.route], None)


class Side(nn.ModuleDict):
    """Networks side by side in one graph, which exports in a fraction of the time of as many graphs."""

    router = None

    def predict(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: network.predict(inputs)["y"] for name, network in self.items()}


def test_onnx_equals_torch_with_and_without_the_sensor():
    """Choosers take the options of a place or cell alike; test_routing.py exports the third one at level `slot`."""
    routings = (("soft", "global"), ("gumbel", "cell"))
    side = Side(
        {f"{c}-{level}": randomise(Net(ROUTED, make_learned_routing(c, level, k=2))) for c, level in routings}
    ).eval()
    torch.manual_seed(0)
    example = {"x": np.ones((2, 4, 6, 8), np.float32), "lidar": np.ones(2, np.int32)}
    engine = OnnxRuntimeEngine(to_onnx(side, example, list(side)).SerializeToString())
    distinct = {name: set() for name in side}
    for lidar in ([1, 1], [0, 1], [0, 0]):
        inputs = {"x": torch.randn(2, 4, 6, 8).numpy(), "lidar": np.array(lidar, np.int32)}
        with torch.no_grad():
            expected = side.predict({name: torch.from_numpy(value) for name, value in inputs.items()})
        found = engine.run(inputs)
        for name, network in side.items():
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-4, err_msg=name)
            distinct[name].add(tuple(float(w.sum()) for w in weights_at(network, "trunk.one").values()))
    assert all(len(routes) > 1 for routes in distinct.values())  # the inputs do change the route


@pytest.mark.parametrize("chooser", ["soft", "reinforce", "supervised"])
def test_a_router_finds_the_right_module(chooser: str) -> None:
    """Right is the module that the output was made with. `supervised` is told by tags and never sees the output."""
    supervised = chooser == "supervised"
    weathers = [LowRank.Options(name=name, slots=("heads.*",), rank=3, when=(name,)) for name in ("rain", "fog")]
    network = Net(
        weathers, make_learned_routing("soft" if supervised else chooser, supervise=1.0 if supervised else 0.0)
    )
    torch.manual_seed(0)
    for name, parameter in network.named_parameters():
        if not name.startswith("chooser"):
            nn.init.normal_(parameter, 0, 0.5).requires_grad_(False)

    def domains(n: int, seed: int) -> tuple[Tensor, Tensor]:
        """Maps of three kinds, that differ in the mean of a channel, in equal shares; their kind."""
        torch.manual_seed(seed)
        kind = torch.arange(n) % 3
        return torch.randn(n, 4, 6, 8) + nn.functional.one_hot(kind, 4)[..., None, None], kind

    optimizer = torch.optim.Adam(network.chooser.parameters(), 0.03)
    for step in range(100):
        x, kind = domains(48, step)
        tags = [Conditions(weather=("clear", "rain", "fog")[k]) for k in kind] if supervised else None
        y = network(x, seen(*[True] * 48), tags)
        route = network.route
        with network.bank.current.running(Route({"rain": (kind == 1).float(), "fog": (kind == 2).float()})):
            costs = (y - network.two(network.one(x))).square().mean(dim=(1, 2, 3))
        terms = network.chooser.losses([route], costs.detach())
        loss = sum(terms.values()) if supervised else costs.mean() + sum(terms.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x, kind = domains(300, 10_000)
    network.eval()(x, seen(*[True] * 300))
    accuracy = (network.route.chosen[..., 0].argmax(dim=1) == kind).float().mean()
    # All the options as often is 1, one of three alone 3: what was learned is nearer to the former.
    assert accuracy > (1 + 1 / 3) / 2
    assert learned_routing.gshard(network.route.logits) < 2
