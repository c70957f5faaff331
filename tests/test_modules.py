"""Slots, low-rank modules, fixed routing: identity at the start, folding, and nothing left behind."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from perception.errors import InputError
from perception.frame import Conditions
from perception.modules.bank import Bank
from perception.modules.computation.low_rank import LowRank
from perception.modules.routing.fixed import FixedRouter
from perception.modules.slot import Route, Slot


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Module, torch.Tensor]:
    """A random convolution in float64, and an input for it."""
    torch.manual_seed(draw(st.integers(0, 1000)))
    groups = draw(st.sampled_from([1, 2, 3]))
    common = {
        "in_channels": groups * draw(st.integers(1, 3)),
        "out_channels": groups * draw(st.integers(1, 3)),
        "kernel_size": draw(st.sampled_from([1, 2, 3, (3, 1)])),
        "stride": draw(st.sampled_from([1, 2])),
        "padding": draw(st.sampled_from([0, 1])),
        "dilation": draw(st.sampled_from([1, 2])),
        "groups": groups,
        "bias": draw(st.booleans()),
        "dtype": torch.float64,
    }
    if draw(st.booleans()):
        layer: nn.Module = nn.ConvTranspose2d(**common)
    else:
        layer = nn.Conv2d(**common, padding_mode=draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"])))
    return layer, torch.randn(2, common["in_channels"], 8, 9, dtype=torch.float64)


def trained(slot: Slot, name: str = "m", rank: int = 2, alpha: float | None = None) -> LowRank:
    """A low-rank module at the slot with random numbers in both factors."""
    module = LowRank(slot.layer, rank, alpha)
    nn.init.normal_(module.b.weight)
    slot.computations[name] = module
    return module


@settings(deadline=None, max_examples=60)
@given(convolutions(), st.integers(1, 3), st.sampled_from([None, 0.5, 4.0]), st.sampled_from([1.0, -0.7, 0.0]))
def test_folded_low_rank_equals_unfolded(case, rank, alpha, weight):
    layer, x = case
    slot = Slot("s", layer)
    trained(slot, rank=rank, alpha=alpha)
    slot.route = Route({"m": weight})
    beside = slot(x)
    assert weight == 0 or not torch.allclose(beside, layer(x))
    slot.fold()
    assert len(slot.computations) == 0
    torch.testing.assert_close(slot(x), beside, rtol=1e-12, atol=1e-12)


@settings(deadline=None, max_examples=30)
@given(convolutions())
def test_a_new_module_is_the_identity_bit_for_bit(case):
    layer, x = case
    slot, expected = Slot("s", layer), layer(x)
    slot.computations["m"] = LowRank(layer, 2)
    slot.route = Route({"m": 1.0})
    assert torch.equal(slot(x), expected)


def test_low_rank_by_hand():
    layer = nn.Conv2d(4, 6, 1, bias=False, dtype=torch.float64)
    slot = Slot("s", layer)
    module = trained(slot, rank=2, alpha=6.0)
    slot.route = Route({"m": 1.0})
    x = torch.randn(1, 4, 1, 1, dtype=torch.float64)
    matrix = layer.weight[..., 0, 0] + 6.0 / 2 * module.b.weight[..., 0, 0] @ module.a.weight[..., 0, 0]
    torch.testing.assert_close(slot(x).flatten(), matrix @ x.flatten(), rtol=1e-12, atol=1e-12)


def test_low_rank_has_the_stated_cost():
    module = LowRank(nn.Conv2d(256, 256, 3), rank=8)
    assert sum(p.numel() for p in module.parameters()) == 20_480


def test_low_rank_refuses_other_layers():
    with pytest.raises(TypeError, match="Linear"):
        LowRank(nn.Linear(3, 3), 2)


def test_weights_of_single_frames_choose_their_modules():
    layer = nn.Conv2d(3, 3, 3, dtype=torch.float64)
    slot = Slot("s", layer)
    trained(slot, "rain")
    x = torch.randn(3, 3, 6, 6, dtype=torch.float64)
    slot.route = Route({"rain": 1.0})
    wet, dry = slot(x), layer(x)
    slot.route = FixedRouter({"rain": ["rain"]})([Conditions(weather="rain"), Conditions(), Conditions(weather="fog")])
    mixed = slot(x)
    torch.testing.assert_close(mixed[0], wet[0], rtol=1e-12, atol=1e-12)
    assert torch.equal(mixed[1:], dry[1:])


def test_swapping_a_module_that_is_not_routed_leaves_the_output_bit_equal():
    slot = Slot("s", nn.Conv2d(3, 3, 3))
    trained(slot, "rain")
    trained(slot, "night")
    slot.route = Route({"rain": 1.0})
    x = torch.randn(1, 3, 6, 6)
    before = slot(x)
    trained(slot, "night")
    assert torch.equal(slot(x), before)


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        (Conditions(), set()),  # unknown: the base alone
        (Conditions(weather="rain"), {"rain"}),
        (Conditions(weather="clear", light="night"), set()),
        (Conditions(weather="rain", light="night", city="boston"), {"rain", "rainy_night"}),
    ],
)
def test_fixed_router_matches_all_that_a_module_asks_for(conditions, expected):
    router = FixedRouter({"rain": ["rain"], "rainy_night": ["rain", "night"]})
    assert router([conditions]).weights.keys() == expected
    assert router([conditions]).static


def test_no_conditions_are_no_modules():
    assert FixedRouter({"always": []})([]).weights == {}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = Slot("trunk.one", nn.Conv2d(2, 2, 3)), Slot("head", nn.Conv2d(2, 2, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(self.one(x))


def test_bank_adds_by_glob_and_deletes_without_a_trace():
    net = Net()
    before = copy.deepcopy(net.state_dict())
    bank = Bank(net)
    bank.add("a", "low_rank", ["trunk.*"], rank=1)
    bank.add("b", "low_rank", ["*"], rank=2)
    assert list(net.one.computations) == ["a", "b"]
    assert list(net.two.computations) == ["b"]
    bank.delete("a")
    bank.delete("b")
    after = net.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[k], before[k]) for k in before)


def test_bank_refuses_unknown_slots_and_used_names():
    bank = Bank(Net())
    with pytest.raises(InputError, match=r"no slot is called 'tronk.*'; there are trunk.one, head"):
        bank.add("a", "low_rank", ["tronk.*"], rank=1)
    bank.add("a", "low_rank", ["head"], rank=1)
    with pytest.raises(InputError, match="already has a module called 'a'"):
        bank.add("a", "low_rank", ["trunk.one"], rank=1)
