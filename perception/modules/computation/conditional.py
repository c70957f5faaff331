"""Modules whose weights are generated from the condition vector z of each frame (Perez et al., 2018; Ha et al., 2017).

Their generators have no bias: where nothing is known z is zero, and the module is the identity.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from perception.frame import CONDITION_VALUES
from perception.modules.computation.computation import (
    LAYERS,
    Affine,
    Computation,
    Site,
    groups_of,
    inputs,
    outputs,
    per_channel,
)
from perception.modules.computation.rescale import scaled

Z = len(CONDITION_VALUES)  # length of a condition vector


class Film(Computation):
    """g(z) * y + b(z) with linear generators g(z) = 1 + G z and b(z) = H z, which start at zero."""

    kind = "film"
    layers = LAYERS
    conditional = True

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.scale = nn.Parameter(layer.weight.new_zeros(outputs(layer), Z))
        self.shift = nn.Parameter(layer.weight.new_zeros(outputs(layer), Z))

    def forward(self, site: Site) -> Tensor:
        z = _known(site.z, self.scale)
        scale, shift = (per_channel(z @ g.T, site.y, site.layer) for g in (self.scale, self.shift))
        return scale * site.y + shift

    def fold(self, function: Affine, layer: Any, z: Tensor | None) -> Affine:
        (z,) = _known(z, self.scale)
        function = scaled(function, 1 + self.scale @ z, layer)
        return function._replace(bias=function.bias + self.shift @ z)

    def multiply_adds(self, layer: Any) -> int:
        """The generators run once a frame and are not counted."""
        return outputs(layer)

    def task_vector(self, layer: Any) -> dict[str, Tensor]:
        return {"scale": self.scale.detach().clone(), "shift": self.shift.detach().clone()}

    @torch.no_grad()
    def set_task_vector(self, vector: dict[str, Tensor], layer: Any) -> None:
        self.scale.copy_(vector["scale"])
        self.shift.copy_(vector["shift"])


class HyperNetwork(Computation):
    """delta = B(z) A x: a low-rank module whose B a network of one hidden layer writes, B(z) = G relu(E z).

    G starts at zero.

    Args:
        layer: of the slot.
        rank: columns of B.
        hidden: width of the generator's hidden layer.
    """

    kind = "hypernetwork"
    layers = (nn.Conv2d, nn.Linear)
    conditional = True

    @classmethod
    def attaches_to(cls, layer: nn.Module) -> bool:
        return isinstance(layer, cls.layers) and groups_of(layer) == 1

    def __init__(self, layer: Any, rank: int, hidden: int) -> None:
        super().__init__()
        self.rank = rank
        if isinstance(layer, nn.Linear):
            self.a: Any = nn.Linear(inputs(layer), rank, bias=False)
        else:
            self.a = nn.Conv2d(
                inputs(layer), rank, layer.kernel_size, layer.stride, layer.padding,
                layer.dilation, bias=False, padding_mode=layer.padding_mode,
            )  # fmt: skip
        nn.init.kaiming_uniform_(self.a.weight, a=math.sqrt(5))
        self.embed, self.generate = (
            nn.Linear(Z, hidden, bias=False),
            nn.Linear(hidden, outputs(layer) * rank, bias=False),
        )
        nn.init.zeros_(self.generate.weight)
        self.to(layer.weight)

    def factor(self, z: Tensor | None) -> Tensor:
        """B(z) (B, O, rank) for condition vectors (B, Z)."""
        written: Tensor = self.generate(torch.relu(self.embed(_known(z, self.a.weight))))
        return written.unflatten(-1, (-1, self.rank))

    def forward(self, site: Site) -> Tensor:
        hidden, b = self.a(site.x), self.factor(site.z)
        b = b.repeat_interleave(len(hidden) // len(b), dim=0)
        if isinstance(site.layer, nn.Linear):
            return torch.einsum("bor,b...r->b...o", b, hidden)
        return torch.einsum("bor,brhw->bohw", b, hidden)

    def fold(self, function: Affine, layer: Any, z: Tensor | None) -> Affine:
        product = torch.einsum("or,r...->o...", self.factor(z)[0], self.a.weight)
        return function._replace(weight=function.weight + product)

    def multiply_adds(self, layer: Any) -> int:
        """The generator runs once a frame and is not counted."""
        return int(self.a.weight.numel()) + self.rank * outputs(layer)


def _known(z: Tensor | None, like: Tensor) -> Tensor:
    """Condition vectors, zeros where none are given, of the type and on the device of `like`."""
    return like.new_zeros(1, Z) if z is None else z.to(like)
