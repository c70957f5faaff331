"""Domain-specific batch normalisation (Li et al., 2017; Bilen and Vedaldi, 2017)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from perception.modules.computation.computation import NORMS, Affine, Computation, Site
from perception.modules.spec import Module


class BatchNorm(Computation):
    """Own gamma, beta, mean and variance in place of the layer's: delta = BN'(x) - BN(x).

    It starts as a copy of the layer. Training updates its statistics; those of the layer do not change.
    """

    class Options(Module):
        kind: Literal["batch_norm"] = "batch_norm"

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
