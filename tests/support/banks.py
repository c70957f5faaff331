"""A bank of a small network in float64 with every kind of layer, and modules with random numbers for it."""

from typing import Any

import torch
from computations import randomize
from torch import Tensor, nn
from vocabulary import CONDITIONS

from perception.modules.bank import Bank
from perception.modules.slot import Slot
from perception.modules.spec import parse_module


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        f64 = torch.float64
        self.one = Slot("one", nn.Conv2d(4, 6, 3, padding=1, groups=2, dtype=f64))
        self.up = Slot("up", nn.ConvTranspose2d(6, 4, 2, 2, dtype=f64))
        self.two = Slot("two", nn.Conv2d(4, 4, 3, padding=1, bias=False, dtype=f64))
        self.norm = Slot("norm", nn.BatchNorm2d(4, dtype=f64))
        self.rows = Slot("rows", nn.Linear(4, 3, dtype=f64))

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.norm(self.two(self.up(self.one(x))))
        return self.rows(features.permute(0, 2, 3, 1))


def new_bank() -> Bank:
    torch.manual_seed(0)
    net = Net()
    randomize(net)
    return Bank(net.eval(), CONDITIONS)


def add(bank: Bank, name: str, kind: str = "low_rank", slots: tuple[str, ...] = ("*",), **options: Any) -> None:
    """A module with random numbers."""
    bank.add(parse_module({"name": name, "kind": kind, "slots": slots, **options}))
    for slot, module in bank.at(name).items():
        if kind == "sparse_delta":
            module.select(torch.rand_like(bank.slots[slot].layer.weight))
        randomize(module)
