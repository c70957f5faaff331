"""Modules that scale and shift the channels of the output, or normalise them anew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from perception.modules.computation.computation import (
    CHANNELWISE,
    NORMS,
    Affine,
    Computation,
    Site,
    outputs,
    per_channel,
    scale_outputs,
)
from perception.modules.spec import Module


class Rescale(Computation):
    """l * y for each channel, starting at l = 1: IA3 (Liu et al., 2022)."""

    class Options(Module):
        kind: Literal["rescale"] = "rescale"  # kind of module

    layers = CHANNELWISE
    linear: ClassVar[Mapping[str, float]] = {"scale": 1.0}

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.scale = nn.Parameter(layer.weight.new_ones(outputs(layer)))

    def forward(self, site: Site) -> Tensor:
        return per_channel(self.scale - 1, site.y, site.layer) * site.y

    def fold(self, function: Affine, layer: Any, z: Tensor | None) -> Affine:
        return scale_function(function, self.scale, layer)

    def multiply_adds(self, layer: Any) -> int:
        return outputs(layer)


class ScaleShift(Rescale):
    """g * y + b for each channel, starting at g = 1 and b = 0: FiLM with a fixed condition (Perez et al., 2018)."""

    class Options(Module):
        kind: Literal["scale_shift"] = "scale_shift"  # kind of module

    linear: ClassVar[Mapping[str, float]] = {"scale": 1.0, "shift": 0.0}

    def __init__(self, layer: Any) -> None:
        super().__init__(layer)
        self.shift = nn.Parameter(layer.weight.new_zeros(outputs(layer)))

    def forward(self, site: Site) -> Tensor:
        return super().forward(site) + per_channel(self.shift, site.y, site.layer)

    def fold(self, function: Affine, layer: Any, z: Tensor | None) -> Affine:
        function = super().fold(function, layer, z)
        return function._replace(bias=function.bias + self.shift)


def scale_function(function: Affine, scale: Tensor, layer: Any) -> Affine:
    """The function with its output channels multiplied by scale (O)."""
    constant = None if function.constant is None else scale[:, None, None] * function.constant
    return Affine(scale_outputs(function.weight, scale, layer), function.bias * scale, constant)


class BatchNorm(Computation):
    """Own gamma, beta, mean and variance in place of the layer's: delta = BN'(x) - BN(x).

    It starts as a copy of the layer. Training updates its statistics; those of the layer do not change.
    """

    class Options(Module):
        kind: Literal["batch_norm"] = "batch_norm"  # kind of module

    layers = NORMS

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.norm = type(layer)(layer.num_features, layer.eps, layer.momentum)
        self.norm.load_state_dict(layer.state_dict())
        self.to(layer.weight)

    def forward(self, site: Site) -> Tensor:
        replaced: Tensor = self.norm(site.x)
        return replaced - site.y

    def output(self, x: Tensor, layer: Any, z: Tensor | None) -> Tensor:
        y: Tensor = self.norm(x)
        return y

    def fold(self, function: Affine, layer: Any, z: Tensor | None) -> Affine:
        """In terms of the layer's statistics: gamma' sigma / sigma' and beta' + gamma' (mu - mu') / sigma'."""
        norm: Any = self.norm
        deviation = (norm.running_var + norm.eps).sqrt()
        return Affine(
            norm.weight * (layer.running_var + layer.eps).sqrt() / deviation,
            norm.bias + norm.weight * (layer.running_mean - norm.running_mean) / deviation,
        )

    def multiply_adds(self, layer: Any) -> int:
        return int(layer.num_features)

    def task_vector(self, layer: Any) -> dict[str, Tensor]:
        own, base = self.norm.state_dict(), layer.state_dict()
        return {name: own[name] - base[name] for name in own if name != "num_batches_tracked"}

    @torch.no_grad()
    def set_task_vector(self, vector: dict[str, Tensor], layer: Any) -> None:
        """A negative variance, which a sum can result in, becomes zero."""
        own = self.norm.state_dict()
        for name, base in layer.state_dict().items():
            if name in vector:
                own[name].copy_(base + vector[name])
        own["running_var"].clamp_(min=0)
