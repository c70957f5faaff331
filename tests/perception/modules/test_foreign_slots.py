"""Slots around layers of a network that knows nothing of them, and the bank on it."""

from __future__ import annotations

import copy

import torch
from computations import assert_near as close
from computations import randomize
from torch import Tensor, nn
from vocabulary import CONDITIONS

from perception.layers import add_slots
from perception.modules.aggregation.notation import parse_block
from perception.modules.bank import Bank
from perception.modules.spec import LowRank

X = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class RunningNorm(nn.Conv2d):
    """A convolution whose weight is not what it multiplies with."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)


class Foreign(nn.Module):
    """Freezes its stem whenever it is told to train, as mmdet's ResNet does; two heads share a layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.blocks = nn.Sequential(
            nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU()),
            nn.Sequential(nn.Conv2d(6, 6, 3, 1, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU()),
        )
        self.odd = RunningNorm(6, 6, 1)
        shared = nn.Conv2d(6, 2, 1)
        self.heads = nn.ModuleDict({"a": nn.Sequential(shared), "b": nn.Sequential(shared)})
        randomize(self.double())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.odd(self.blocks(self.stem(x)))
        return self.heads["a"](x), self.heads["b"](2 * x)

    def train(self, mode: bool = True) -> Foreign:
        super().train(mode)
        self.stem.requires_grad_(False).eval()
        return self


def bank_of(patterns: tuple[str, ...] = ("*",)) -> tuple[Foreign, Bank]:
    """A foreign network in evaluation mode as it was, and the bank of the same one with slots."""
    plain = Foreign().eval()
    wrapped = copy.deepcopy(plain)
    add_slots(wrapped, patterns=patterns)
    return plain, Bank(wrapped, CONDITIONS)


def same(one: nn.Module, other: nn.Module) -> bool:
    """Both outputs, bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(one(X), other(X), strict=True))


def with_rain(bank: Bank, *slots: str) -> Bank:
    """A module with random numbers, active."""
    bank.add(LowRank(name="rain", slots=slots, rank=2))
    for computation in bank.at("rain").values():
        randomize(computation)
    bank.activate(parse_block("rain"))
    return bank


def test_slots_are_named_after_the_layers_and_globs_choose_among_them():
    assert list(bank_of()[1].slots) == [
        "stem",
        "blocks.0.0",
        "blocks.0.1",
        "blocks.1.0",
        "blocks.1.1",
        "heads.a.0",
    ]
    assert list(bank_of(("blocks.1*", "stem"))[1].slots) == ["stem", "blocks.1.0", "blocks.1.1"]


def test_a_second_wrapping_adds_slots_and_wraps_none_twice():
    plain, bank = bank_of(("stem",))
    add_slots(bank.network)
    assert len(Bank(bank.network, CONDITIONS).slots) == 6
    assert type(bank.slots["stem"].layer) is nn.Conv2d
    assert same(plain, bank.network)


def test_without_an_active_module_the_network_computes_what_it_did_bit_for_bit():
    plain, bank = bank_of()
    with_rain(bank, "blocks.*", "heads.*")
    assert not torch.allclose(bank.network(X)[0], plain(X)[0])
    bank.activate(None)
    assert same(plain, bank.network)


def test_folded_it_computes_what_it_did_with_the_module_and_unfolded_what_it_did_at_first():
    plain, bank = bank_of()
    expected = with_rain(bank, "*").network(X)
    bank.merge(parse_block("rain"))
    for one, other in zip(expected, bank.network(X), strict=True):
        close(other, one)
    bank.unmerge()
    bank.activate(None)
    assert same(plain, bank.network)


def test_training_moves_the_module_alone_also_where_the_network_freezes_its_own_layers():
    plain, bank = bank_of()
    bank.add(LowRank(name="rain", slots=("stem", "blocks.*"), rank=2))
    before = bank.base_hash()
    bank.activate(parse_block("rain"))
    bank.train("rain")
    optimizer = torch.optim.SGD([p for p in bank.network.parameters() if p.requires_grad], 0.1)
    bank.network(X)[0].square().sum().backward()
    optimizer.step()
    assert all(c.b.weight.abs().max() > 0 for c in bank.at("rain").values())
    assert bank.base_hash() == before
    bank.activate(None)
    assert same(plain, bank.network.eval())
