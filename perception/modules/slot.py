"""A slot: a named place in the network where modules attach. Empty, it is the layer it wraps and nothing more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Route:
    """Which modules compute, and with what weight: what a router decides.

    A weight is a number for the whole batch or a tensor (B,) with one for each frame. Modules without an entry
    do not run. `static` says that the weights do not depend on the input, so that an affine module can be folded.
    """

    weights: Mapping[str, float | Tensor] = field(default_factory=dict)
    static: bool = True


class Slot(nn.Module):
    """Wraps one layer; modules add their deltas to its output: y = layer(x) + sum_m route[m] * module_m(x, y)."""

    def __init__(self, name: str, layer: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.layer: Any = layer
        self.computations = nn.ModuleDict()
        self.route = Route()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        delta: Tensor | None = None
        for name, module in self.computations.items():
            weight = self.route.weights.get(name)
            if weight is None:
                continue
            part = module(x, y)
            if isinstance(weight, Tensor):
                weight = weight.to(part).reshape(-1, *(1,) * (part.ndim - 1))
            part = weight * part
            delta = part if delta is None else delta + part
        return y if delta is None else y + delta

    @torch.no_grad()
    def fold(self) -> None:
        """Write the routed modules into the layer's weights and empty the slot.

        Raises:
            ValueError: a routed module is not affine, or its weight depends on the input.
        """
        for name, module in self.computations.items():
            weight = self.route.weights.get(name)
            if weight is None:
                continue
            if not (module.affine and self.route.static) or isinstance(weight, Tensor):
                raise ValueError(f"{self.name}: module {name!r} cannot be folded")
            fold: Any = module.fold
            self.layer.weight.copy_(fold(self.layer.weight, weight))
        self.computations = nn.ModuleDict()
        self.route = Route()
