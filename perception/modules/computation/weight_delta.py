"""Modules that add a delta to the weights of a layer, W' = W + delta: low-rank ones and sparse ones.

Low-rank: LoRA (Hu et al., 2021) for convolutions and linear layers. Sparse: a few single weights of the layer change
(Ansell et al., 2022).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from perception.io.section import Width
from perception.modules.computation.computation import (
    CONVOLUTIONS,
    Affine,
    Computation,
    Site,
    Weight,
    apply_weight,
    groups_of,
    inputs,
    outputs,
    pointwise,
    resized,
)
from perception.modules.spec import Module


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


class LowRank(WeightDelta):
    """delta = (alpha / r) B(A x), with A shaped like the base layer (I -> r) and B pointwise (r -> O).

    For a transposed convolution the roles are exchanged: A is pointwise and B is shaped like the base layer.
    B starts at zero. A grouped layer gets grouped A and B, and the rank r is per group.
    """

    class Options(Module):
        kind: Literal["low_rank"] = "low_rank"  # kind of module
        rank: Width = 8  # of the added matrix
        alpha: float | None = None  # alpha / rank scales the delta; None: alpha = rank

    def __init__(self, layer: Any, rank: int, alpha: float | None = None) -> None:
        super().__init__()
        self.groups, self.scale = groups_of(layer), (rank if alpha is None else alpha) / rank
        self.transposed = isinstance(layer, nn.ConvTranspose2d)
        hidden = rank * self.groups
        if self.transposed:
            self.a: Any = pointwise(layer, inputs(layer), hidden, self.groups)
            self.b: Any = resized(layer, hidden, outputs(layer), self.groups)
        else:
            self.a = resized(layer, inputs(layer), hidden, self.groups)
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


class SparseDelta(WeightDelta):
    """W' = W + m * d, where the mask m keeps s = share * numel(W) entries, at least one.

    The mask starts on the weights of largest magnitude; `select` moves it.
    """

    class Options(Module):
        kind: Literal["sparse_delta"] = "sparse_delta"  # kind of module
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


class LowRankStack(nn.Module):
    """delta = sum_m w_m s_m B_m(A_m x) = B(w A x), with the rows of all A and the columns of all s B stacked.

    Two operations for any number of modules. In a grouped layer they are stacked group by group.
    """

    owner: Tensor

    def __init__(self, modules: Mapping[str, LowRank]) -> None:
        super().__init__()
        self.names, parts = tuple(modules), list(modules.values())
        groups, first = parts[0].groups, parts[0]
        ranks = [len(part.a.weight) // groups for part in parts]
        owner = torch.arange(len(parts)).repeat_interleave(torch.tensor(ranks))  # of each hidden channel of a group
        self.register_buffer("owner", owner.repeat(groups), persistent=False)
        self.a, self.b = copy.deepcopy(first.a), copy.deepcopy(first.b)

        def by_group(weight: Tensor) -> Tensor:  # (g r, ...) -> (g, r, ...)
            return weight.detach().unflatten(0, (groups, -1))

        rows = torch.cat([by_group(part.a.weight) for part in parts], dim=1).flatten(0, 1)
        scaled = [part.scale * part.b.weight.detach() for part in parts]
        if first.transposed:  # b (g r, O/g, k, k), else (O, r, ...)
            columns = torch.cat([by_group(weight) for weight in scaled], dim=1).flatten(0, 1)
        else:
            columns = torch.cat(scaled, dim=1)
        self.a.weight, self.b.weight = nn.Parameter(rows), nn.Parameter(columns)
        hidden = len(rows)
        if isinstance(self.a, nn.Linear):
            self.a.out_features = self.b.in_features = hidden
        else:
            self.a.out_channels = self.b.in_channels = hidden

    def forward(self, x: Tensor, weights: Mapping[str, Weight]) -> Tensor | None:
        """The delta for the layer's input; None if none of the modules has a weight.

        Args:
            weights: by name, each a number or a tensor (1,).
        """
        if weights.keys().isdisjoint(self.names):
            return None
        given = [weights.get(name, 0.0) for name in self.names]
        each = torch.cat([w if isinstance(w, Tensor) else self.a.weight.new_tensor([w]) for w in given])[self.owner]
        hidden = self.a(x) * (each if isinstance(self.a, nn.Linear) else each[:, None, None])
        delta: Tensor = self.b(hidden)
        return delta

    def multiply_adds(self, layer: Any) -> int:
        """As of `LowRank`; scaling the hidden channels is not counted."""
        return int(self.a.weight.numel() + self.b.weight.numel())
