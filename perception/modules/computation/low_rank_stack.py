"""The low-rank modules of a slot in one, for an exported graph that contains all of them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from perception.modules.computation.low_rank import LowRank
from perception.modules.route import Weight


class LowRankStack(nn.Module):
    """delta = sum_m w_m s_m B_m(A_m x) = B(w A x), with the rows of all A and the columns of all s B stacked.

    Two operations for any number of modules. In a grouped layer they are stacked group by group.

    Args:
        modules: of one slot, by name.
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
