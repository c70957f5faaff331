"""A network with slots after a fused map, small enough for everything."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from vocabulary import CONDITIONS

from perception.frame import Conditions
from perception.modules.bank import Bank
from perception.modules.routing.fixed import FixedRouter
from perception.modules.routing.learned import LearnedRouter
from perception.modules.slot import Slot
from perception.modules.spec import LearnedRouting, LowRank

EVERYWHERE = ("trunk.*", "heads.*")


class Net(nn.Module):
    """A map (B, 4, 6, 8) through two slots."""

    def __init__(self, modules: list[LowRank], routing: LearnedRouting | None = None) -> None:
        super().__init__()
        self.one, self.two = Slot("trunk.one", nn.Conv2d(4, 4, 3, 2, 1)), Slot("heads.two", nn.Conv2d(4, 3, 1))
        self.bank = Bank(self, CONDITIONS)
        for module in modules:
            self.bank.add(module)
        self.router = FixedRouter(self.bank, ("detection",))
        self.chooser = LearnedRouter(routing, 4, self.bank) if routing else None

    def forward(self, x: Tensor, sensors: dict[str, Tensor], conditions: list[Conditions] | None = None) -> Tensor:
        ((fixed, tasks),) = self.router(conditions or [], {})
        self.route = self.chooser(x, fixed, sensors, tasks, conditions or []) if self.chooser else fixed
        self.bank.apply(self.route)
        y: Tensor = self.two(self.one(x))
        return y

    def predict(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"y": self(inputs["x"], {"lidar": inputs["lidar"] > 0})}


ROUTED = [
    LowRank(name="rain", slots=EVERYWHERE, rank=2, when=("rain",)),
    LowRank(name="blind", slots=("trunk.*",), rank=2, when=("no-lidar",)),
    LowRank(name="seeing", slots=EVERYWHERE, rank=2, when=("lidar", "night")),
]


def randomised(network: Any, scale: float = 1.0) -> Any:
    """Modules and chooser with random numbers; new modules are the identity and a new chooser is indifferent."""
    torch.manual_seed(0)
    for name, parameter in network.named_parameters():
        if "computations" in name or name.startswith("chooser"):
            nn.init.normal_(parameter, 0, scale)
    return network


def learned(choose: str = "soft", level: str = "global", **options: Any) -> LearnedRouting:
    return LearnedRouting.model_validate({"kind": "learned", "choose": choose, "level": level, **options})


def weights_at(network: Net, slot: str) -> dict[str, Tensor]:
    """Of the modules that the slot holds."""
    there = network.bank.slots[slot].computations
    return {name: w for name, w in network.route.at(slot).items() if name in there}


def softmax(values: np.ndarray) -> np.ndarray:
    e = np.exp(values - values.max())
    return e / e.sum()
