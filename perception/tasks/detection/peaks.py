"""CenterPoint decoding that computes the regression branches only at the peaks of the heatmaps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from perception.modules.slot import Slot
from perception.tasks.detection.center_head import CenterHead
from perception.tasks.detection.targets import map_name


class PeakHead(nn.Module):
    """A trained CenterHead for inference: heatmaps first, then the regression branches at their K best cells.

    The regression at a cell depends on a patch around it: 3 x 3 cells, or 5 x 5 if the last convolutions have 3 x 3
    kernels. So the branches run on K patches of the shared features, with all branches of a group stacked into one.
    """

    inside: Tensor

    def __init__(self, head: CenterHead) -> None:
        """Stacked weights are copies of the head's, the others are shared with it."""
        super().__init__()
        self.head = head
        self.size = head.config.output_kernel  # of the patch that the last convolutions see
        self.border = (self.size + 2) // 2  # cells around the map that patches at its edge reach into
        stacked = [_stacked(head, i) for i in range(len(head.config.groups))]
        self.hidden, self.last = (nn.ModuleList(layers) for layers in zip(*stacked, strict=True))
        inside = F.pad(torch.ones(head.grid.shape), (self.border,) * 4)
        self.register_buffer("inside", inside.flatten(), persistent=False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """The heatmaps, and the features (B, C, rows, columns) shared by the branches of all groups."""
        x = self.head.shared(x)
        return self.head.heat(x) | {"features": x}

    def decode(self, dense: dict[str, Tensor]) -> dict[str, Tensor]:
        """The same result as `CenterHead.decode`."""
        features = F.pad(dense["features"], (self.border,) * 4).permute(0, 2, 3, 1)  # B rows columns C
        return self.head.boxes(dense, lambda group, cell: self._regress(group, features, cell))

    def _regress(self, group: int, features: Tensor, cell: Tensor) -> dict[str, Tensor]:
        """(B, K, n) of each regression output, from the padded features."""
        numbers = self.head.regressed
        x = torch.relu(self.hidden[group](self._patches(features, cell, self.size + 2).permute(0, 3, 1, 2)))
        if self.size > 1:
            # The last convolutions pad the map with zeros, and see nothing of what lies beyond it.
            inside = self.inside.expand(len(features), -1)[..., None].unflatten(1, features.shape[1:3])
            x = x * self._patches(inside, cell, self.size).permute(0, 3, 1, 2)
        found = self.last[group](x).reshape(*cell.shape, sum(numbers.values()))
        return dict(zip(numbers, found.split(list(numbers.values()), dim=-1), strict=True))

    def _patches(self, padded: Tensor, cell: Tensor, size: int) -> Tensor:
        """(B K, size, size, C) patches around cells (B, K) of a padded feature map (B, rows, columns, C)."""
        b, rows, columns, channels = padded.shape
        row = torch.div(cell, self.head.grid.shape[1], rounding_mode="floor")
        column = cell - row * self.head.grid.shape[1]
        first = self.border - size // 2  # of the patch around the map's first cell
        corner = (row + first) * columns + column + first
        corner = corner + torch.arange(b, device=cell.device)[:, None] * (rows * columns)
        steps = torch.arange(size, device=cell.device)
        index = corner.flatten()[:, None] + (steps[:, None] * columns + steps).flatten()  # BK size * size
        patches = padded.flatten(0, 2).index_select(0, index.flatten())
        return patches.reshape(-1, size, size, channels)


def at_peaks(head: nn.Module) -> nn.Module:
    """The head as a `PeakHead`; unchanged if it is no CenterHead or if modules at its branches need whole maps."""
    if not isinstance(head, CenterHead):
        return head
    names = [map_name(head.config, name, i) for i in range(len(head.config.groups)) for name in head.regressed]
    slots = [m for name in names for m in head.branches[name].modules() if isinstance(m, Slot)]
    if any(slot.computations or slot.stack or slot.constant is not None for slot in slots):
        return head
    return PeakHead(head).eval()


class _Stacked(nn.Module):
    """A convolution with the stacked weights of several; they are not parameters."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, layers: list[Any]) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach())
        self.register_buffer("bias", torch.cat([layer.bias for layer in layers]).detach())

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias)


def _stacked(head: CenterHead, group: int) -> tuple[_Stacked, _Stacked]:
    """A group's branches stacked: their first convolutions with the normalisation, and their last ones.

    The first convolutions share their input; each last one reads the output of its own first one.
    """
    branches: list[Any] = [head.branches[map_name(head.config, name, group)] for name in head.regressed]
    hidden = [fuse_conv_bn_eval(first.conv.layer, first.norm.layer) for first, _ in branches]
    last = [slot.layer for _, slot in branches]
    apart = torch.block_diag(*(layer.weight.flatten(1) for layer in last))
    return (
        _Stacked(torch.cat([layer.weight for layer in hidden]), hidden),
        _Stacked(apart.unflatten(1, (-1, *last[0].weight.shape[2:])), last),
    )
