"""Sparse deltas: a few single weights of the layer change (Ansell et al., 2022)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from perception.modules.computation.weight_delta import WeightDelta
from perception.modules.spec import Module


class SparseDelta(WeightDelta):
    """W' = W + m * d, where the mask m keeps s = share * numel(W) entries.

    The mask starts on the weights of largest magnitude; `select` moves it.

    Args:
        layer: of the slot.
        share: of the layer's weights that may change; at least one does.
    """

    class Options(Module):
        kind: Literal["sparse_delta"] = "sparse_delta"
        share: Annotated[float, Field(gt=0, le=1)] = 0.01  # of the layer's weights that change

    indices: Tensor

    def __init__(self, layer: Any, share: float) -> None:
        super().__init__()
        self.shape = layer.weight.shape
        count = max(1, round(share * layer.weight.numel()))
        self.values = nn.Parameter(layer.weight.new_zeros(count))
        self.register_buffer("indices", torch.zeros(count, dtype=torch.int64, device=layer.weight.device))
        self.select(layer.weight.detach().abs())

    @torch.no_grad()
    def select(self, score: Tensor) -> None:
        """Move the mask to the weights with the largest scores (shaped like the weight) and reset the delta to zero."""
        self.indices.copy_(score.flatten().topk(len(self.values)).indices.sort().values)
        self.values.zero_()

    def delta(self) -> Tensor:
        """m * d, shaped like the layer's weight."""
        empty = self.values.new_zeros(self.shape.numel())
        return empty.scatter(0, self.indices, self.values).reshape(self.shape)

    def multiply_adds(self, layer: Any) -> int:
        """As many as the layer's, because the delta is computed densely."""
        return int(layer.weight.numel())

    @torch.no_grad()
    def set_task_vector(self, vector: dict[str, Tensor], layer: Any) -> None:
        """Keeps the entries of largest magnitude, as many as the mask has."""
        self.select(vector["weight"].abs())
        self.values.copy_(vector["weight"].flatten()[self.indices])
