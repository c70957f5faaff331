"""Representation aggregation: attention over the deltas at a slot, AdapterFusion (Pfeiffer et al., 2021).

Parallel and Average blocks and the weights of routes combine deltas without parameters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perception.errors import InputError
from perception.modules.base import base_parameters
from perception.modules.composition import Block, Fuse, names
from perception.modules.computation.computation import Site, outputs

if TYPE_CHECKING:
    from perception.modules.bank import Bank


class AttentionFusion(nn.Module):
    """sum_i a_i V delta_i with a = softmax_i((Q y) . (K delta_i) / sqrt(O)), at each cell (of a Linear: each row).

    The members share Q, K and V, so their order does not matter. V starts as the identity and Q at zero: a new
    fusion is the mean of its members. Q y . K delta_i is computed as (K' Q y) . delta_i and the sum before V, so
    that the three matrices are applied once for any number of members.
    """

    def __init__(self, layer: Any, block: Fuse) -> None:
        super().__init__()
        self.block = block
        channels = outputs(layer)
        self.rows = isinstance(layer, nn.Linear)  # channels are the last dimension of y, not its second
        self.query = nn.Parameter(torch.zeros(channels, channels))
        self.key = nn.Parameter(torch.empty(channels, channels))
        self.value = nn.Parameter(torch.eye(channels))
        nn.init.kaiming_uniform_(self.key, a=math.sqrt(5))
        self.to(next(chain(layer.parameters(), layer.buffers())))  # the memory's layer has no parameters

    def forward(self, site: Site, parts: list[Tensor], running: Sequence[Tensor | bool] = ()) -> Tensor:
        """The joint delta of the members' deltas, each of the shape of `site.y`.

        Args:
            running: for each member whether it runs, or where: (B, 1, ...) bool, which broadcasts over `site.y`. The
                attention is over running members. Empty: all run.
        """
        channel = -1 if self.rows else 1
        queries = self._map(self.key.T, self._map(self.query, site.y)) / math.sqrt(len(self.query))
        scores = torch.stack([(queries * part).sum(dim=channel, keepdim=True) for part in parts])
        if any(isinstance(where, Tensor) or not where for where in running):
            runs = [torch.as_tensor(where, device=scores.device).expand(scores.shape[1:]) for where in running]
            scores = scores.masked_fill(~torch.stack(runs), torch.finfo(scores.dtype).min)
        shares = scores.softmax(dim=0)
        return self._map(self.value, sum(share * part for share, part in zip(shares, parts, strict=True)))

    def _map(self, matrix: Tensor, channels: Any) -> Tensor:
        """The matrix (O, O) on the channels of each cell or row."""
        if self.rows:
            return F.linear(channels, matrix)
        if channels.ndim == 4:  # what engines run fastest
            return F.conv2d(channels, matrix[:, :, None, None])
        return torch.einsum("po,bo...->bp...", matrix, channels)


def add_fusion(bank: Bank, block: Block) -> None:
    """Add the attention of a Fuse block to every slot that has two or more of its members.

    It is frozen if the base is; `Bank.train(block.key)` trains it.
    """
    if not isinstance(block, Fuse):
        raise InputError(f"{block}: only a fuse block has attention, such as fuse(rain, night)")
    absent = [name for name in names(block) if name not in bank.modules]
    if absent:
        raise InputError(f"{block}: the model has no module called {absent[0]!r}; there are {', '.join(bank.modules)}")
    members = [{*names(member)} for member in block.members]
    shared = [slot for slot in bank.slots.values() if sum(bool(m & slot.computations.keys()) for m in members) > 1]
    if not shared:
        raise InputError(f"{block}: no slot has two of its members, so there is nothing to fuse; use parallel")
    if any(block.key in slot.fusions for slot in shared):
        raise InputError(f"{block}: the model already has its attention")
    frozen = not any(parameter.requires_grad for parameter in base_parameters(bank.network))
    for slot in shared:
        slot.fusions[block.key] = AttentionFusion(slot.layer, block).train(slot.training).requires_grad_(not frozen)
