"""Base class of modules that add a delta to the weights of a layer: W' = W + delta."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from perception.modules.computation.computation import CONVOLUTIONS, Affine, Computation, Site, apply_weight


class WeightDelta(Computation):
    """A module whose delta to the layer's output is the layer's operation with another weight."""

    layers = (*CONVOLUTIONS, nn.Linear)

    def delta(self) -> Tensor:
        """The change of the weight, shaped like the layer's."""
        raise NotImplementedError

    def forward(self, site: Site) -> Tensor:
        return apply_weight(site.x, self.delta(), site.layer)

    def fold(self, function: Affine, layer: Any, z: Tensor | None) -> Affine:
        return function._replace(weight=function.weight + self.delta())

    def task_vector(self, layer: Any) -> dict[str, Tensor]:
        """The whole delta, because the mean of factors is not the mean of their product."""
        return {"weight": self.delta().detach().clone()}
