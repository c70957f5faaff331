"""Low-rank modules: LoRA (Hu et al., 2021) for convolutions."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


class LowRank(nn.Module):
    """delta(x) = (alpha / r) B(A x), with A shaped like the base layer (I -> r) and B pointwise (r -> O).

    For a transposed convolution the roles are exchanged: A is pointwise and B is shaped like the base layer.
    B starts at zero, so that the module starts as the identity. A grouped layer gets grouped A and B.

    Args:
        layer: the Conv2d or ConvTranspose2d of the slot.
        rank: r, per group.
        alpha: scale of the delta; alpha / r multiplies it, and alpha = r where it is not given.
    """

    kind = "low_rank"
    affine = True

    def __init__(self, layer: nn.Module, rank: int, alpha: float | None = None) -> None:
        super().__init__()
        if not isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            raise TypeError(f"low_rank attaches to convolutions, not to {type(layer).__name__}")
        self.groups, self.scale = layer.groups, (rank if alpha is None else alpha) / rank
        self.transposed = isinstance(layer, nn.ConvTranspose2d)
        hidden, groups = rank * layer.groups, layer.groups
        if isinstance(layer, nn.ConvTranspose2d):
            self.a: Any = nn.Conv2d(layer.in_channels, hidden, 1, groups=groups, bias=False)
            self.b: Any = nn.ConvTranspose2d(
                hidden, layer.out_channels, layer.kernel_size, layer.stride, layer.padding,  # type: ignore[arg-type]
                layer.output_padding, groups, False, layer.dilation, layer.padding_mode,  # type: ignore[arg-type]
            )  # fmt: skip
        else:
            self.a = nn.Conv2d(
                layer.in_channels, hidden, layer.kernel_size, layer.stride, layer.padding,  # type: ignore[arg-type]
                layer.dilation, groups, False, layer.padding_mode,  # type: ignore[arg-type]
            )  # fmt: skip
            self.b = nn.Conv2d(hidden, layer.out_channels, 1, groups=groups, bias=False)
        nn.init.kaiming_uniform_(self.a.weight, a=math.sqrt(5))
        nn.init.zeros_(self.b.weight)
        self.to(layer.weight)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The delta (B, O, H, W) for the layer's input x (B, I, H', W') and its output y."""
        delta: Tensor = self.b(self.a(x))
        return delta * self.scale if self.scale != 1 else delta

    def fold(self, weight: Tensor, route: float = 1.0) -> Tensor:
        """The base layer's weight with `route` times this module in it."""
        a, b, g = self.a.weight, self.b.weight, self.groups
        if self.transposed:  # a (g r, I/g, 1, 1), b (g r, O/g, k, k), weight (I, O/g, k, k)
            product = torch.einsum("gri,grokl->giokl", a.unflatten(0, (g, -1))[..., 0, 0], b.unflatten(0, (g, -1)))
        else:  # a (g r, I/g, k, k), b (O, r, 1, 1), weight (O, I/g, k, k)
            product = torch.einsum("gor,grikl->goikl", b.unflatten(0, (g, -1))[..., 0, 0], a.unflatten(0, (g, -1)))
        return weight + route * self.scale * product.flatten(0, 1)
