"""Low-rank modules: LoRA (Hu et al., 2021) for convolutions and linear layers."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from perception.modules.computation.computation import (
    Site,
    groups_of,
    inputs,
    outputs,
    pointwise,
)
from perception.modules.computation.weight_delta import WeightDelta
from perception.modules.spec import Module
from perception.section import Positive


class LowRank(WeightDelta):
    """delta = (alpha / r) B(A x), with A shaped like the base layer (I -> r) and B pointwise (r -> O).

    For a transposed convolution the roles are exchanged: A is pointwise and B is shaped like the base layer.
    B starts at zero. A grouped layer gets grouped A and B.

    Args:
        layer: of the slot.
        rank: r, per group.
        alpha: alpha / r multiplies the delta; None stands for alpha = r.
    """

    class Options(Module):
        kind: Literal["low_rank"] = "low_rank"
        rank: Positive = 8
        alpha: float | None = None  # alpha / rank scales the delta; None: alpha = rank

    def __init__(self, layer: Any, rank: int, alpha: float | None = None) -> None:
        super().__init__()
        self.groups, self.scale = groups_of(layer), (rank if alpha is None else alpha) / rank
        self.transposed = isinstance(layer, nn.ConvTranspose2d)
        hidden = rank * self.groups
        if self.transposed:
            self.a: Any = pointwise(layer, inputs(layer), hidden, self.groups)
            self.b: Any = nn.ConvTranspose2d(
                hidden, outputs(layer), layer.kernel_size, layer.stride, layer.padding,
                layer.output_padding, self.groups, False, layer.dilation, layer.padding_mode,
            )  # fmt: skip
        else:
            if isinstance(layer, nn.Linear):
                self.a = nn.Linear(inputs(layer), hidden, bias=False)
            else:
                self.a = nn.Conv2d(
                    inputs(layer), hidden, layer.kernel_size, layer.stride, layer.padding,
                    layer.dilation, self.groups, False, layer.padding_mode,
                )  # fmt: skip
            self.b = pointwise(layer, hidden, outputs(layer), self.groups)
        nn.init.kaiming_uniform_(self.a.weight, a=math.sqrt(5))
        nn.init.zeros_(self.b.weight)
        self.to(layer.weight)

    def forward(self, site: Site) -> Tensor:
        delta: Tensor = self.b(self.a(site.x))
        return delta * self.scale if self.scale != 1 else delta

    def delta(self) -> Tensor:
        """(alpha / r) B A."""
        a, b, g = self.a.weight, self.b.weight, self.groups
        if self.transposed:  # a (g r, I/g, 1, 1), b (g r, O/g, k, k), weight (I, O/g, k, k)
            product = torch.einsum("gri,grokl->giokl", a.unflatten(0, (g, -1))[..., 0, 0], b.unflatten(0, (g, -1)))
        else:  # a (g r, I/g, k, k) or (r, I), b (O, r, 1, 1) or (O, r), weight (O, I/g, k, k) or (O, I)
            left = b.flatten(1).unflatten(0, (g, -1))
            product = torch.einsum("gor,gr...->go...", left, a.unflatten(0, (g, -1)))
        return self.scale * product.flatten(0, 1)

    def multiply_adds(self, layer: Any) -> int:
        """At a transposed convolution both factors are counted at the input's cells."""
        return int(self.a.weight.numel() + self.b.weight.numel())

    @torch.no_grad()
    def set_task_vector(self, vector: dict[str, Tensor], layer: Any) -> None:
        """The nearest product of rank r in each group (Eckart and Young, 1936).

        A gets orthonormal rows (transposed: B's size is in its k x k filters, A is pointwise) and B the size, so
        that rows to which nothing falls go on learning as those of a new module do.
        """
        weight, a, g = vector["weight"], self.a.weight, self.groups
        matrices = weight.unflatten(0, (g, -1)).flatten(2).double()  # g O/g (I/g k k); transposed g I/g (O/g k k)
        u, s, v = torch.linalg.svd(matrices, full_matrices=False)
        if self.transposed:
            u, v = v.transpose(1, 2), u.transpose(1, 2)
        r = min(s.shape[1], len(a) // g)
        rows, columns = v[:, :r], (u * s[:, None])[:, :, :r] / self.scale
        nn.init.zeros_(self.b.weight)
        a.unflatten(0, (g, -1))[:, :r] = rows.unflatten(2, a.shape[1:]).to(a)
        if self.transposed:  # b (g r, O/g, k, k)
            by_row = self.b.weight.unflatten(0, (g, -1))
            by_row[:, :r] = columns.transpose(1, 2).unflatten(2, by_row.shape[2:]).to(a)
        else:  # b (O, r, 1, 1) or (O, r)
            self.b.weight.flatten(1).unflatten(0, (g, -1))[:, :, :r] = columns.to(a)
