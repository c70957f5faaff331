"""A memory: the fused map of the frame before, moved with the vehicle and mixed into that of the frame.

One dense recurrent map, as in INT (Xu et al., 2022) and VideoBEV (Han et al., 2023): constant cost over any time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perception.errors import InputError
from perception.grid import BevGrid
from perception.modules.computation.computation import Computation, Site
from perception.modules.memories import MemoryOptions


@dataclass(frozen=True)
class Remembered:
    """What the slot of the memory reads: the map of the frames, and the state of the frame before, None without one.

    Attributes:
        past: the inputs `MOTION_INPUTS` of the network.
    """

    map: Tensor
    state: Tensor | None
    past: Mapping[str, Tensor]
    layer: FusedMap

    def __getitem__(self, rows: Tensor) -> Remembered:
        state = None if self.state is None else self.state[rows]
        return Remembered(self.map[rows], state, {name: each[rows] for name, each in self.past.items()}, self.layer)

    @cached_property
    def moved(self) -> tuple[Tensor, Tensor]:
        """The state moved to where the vehicle is now, as of `FusedMap.warp`; once for all memories."""
        assert self.state is not None
        return self.layer.warp(self.state, self.past["current_from_previous"])


class FusedMap(nn.Module):
    """The layer at the memory's slot: the fused map (C = `channels`) as it is; has no parameters."""

    centers: Tensor  # (rows, columns, 2) m, of the cells

    def __init__(self, grid: BevGrid, channels: int) -> None:
        super().__init__()
        self.grid, self.in_channels, self.out_channels = grid, channels, channels
        # Of the type of the network's weights, which is that of a memory here, too.
        centers = torch.from_numpy(grid.centers()).to(torch.get_default_dtype())
        self.register_buffer("centers", centers, persistent=False)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, rows, columns) of the map."""
        return self.out_channels, *self.grid.shape

    def forward(self, x: Remembered) -> Tensor:
        return x.map

    def reduce(self, fused: Tensor, state: Tensor) -> Tensor:
        """A map of the layer on the cells of a state: the largest value of each."""
        stride = self._stride(state)
        return fused if stride == 1 else F.max_pool2d(fused, stride)

    def spread(self, change: Tensor) -> Tensor:
        """A change of the state on the cells of the map, the same for all that lie in one of the state's."""
        stride = self._stride(change)
        return change if stride == 1 else F.interpolate(change, scale_factor=stride, mode="nearest")

    def _stride(self, state: Tensor) -> int:
        """Side of a cell of the state, in cells of the map."""
        return self.grid.shape[0] // state.shape[-2]

    def warp(self, state: Tensor, current_from_previous: Tensor) -> tuple[Tensor, Tensor]:
        """The state of the frame before, moved to where the vehicle is now, for what does not move.

        Bilinear; what is outside of the old map counts as zero. The grid is computed in single precision at least. Also
        returns the share (B, 1, rows, columns) of each value that comes from inside of the old map.
        """
        kind = torch.promote_types(state.dtype, torch.float32)
        motion, (rows, columns), stride = current_from_previous.to(kind), state.shape[-2:], self._stride(state)
        centers = self.centers
        if stride > 1:
            centers = centers[::stride, ::stride] + (stride - 1) / 2 * self.grid.cell
        # The inverse of a rigid motion: R^T (p - t), for the points p on the ground. By sums of products, because
        # engines may compute products of matrices in less than single precision.
        x = centers[..., 0].to(kind) - motion[:, 0, 3, None, None]
        y = centers[..., 1].to(kind) - motion[:, 1, 3, None, None]
        z = -motion[:, 2, 3, None, None]
        old_x, old_y = (
            motion[:, 0, axis, None, None] * x + motion[:, 1, axis, None, None] * y + motion[:, 2, axis, None, None] * z
            for axis in (0, 1)
        )
        # Places in cells: cell i spans from i to i + 1, as of `BevGrid.continuous`.
        cell = stride * self.grid.cell
        column, row = (old_x - self.grid.x[0]) / cell, (old_y - self.grid.y[0]) / cell
        places = torch.stack([column * (2 / columns) - 1, row * (2 / rows) - 1], dim=-1)
        moved = F.grid_sample(state.to(kind), places, mode="bilinear", padding_mode="zeros", align_corners=False)
        inside = _inside(column, columns) * _inside(row, rows)
        return moved, inside[:, None]


def _inside(place: Tensor, cells: int) -> Tensor:
    """The share of a bilinear sample's weights along one axis that are on the map, at places in cells."""
    return torch.minimum(place + 0.5, cells + 0.5 - place).clamp(0, 1)


_STEEP = 10.0  # of `scale`, so that a short training reaches shares near 1


class Memory(Computation):
    """H = F + valid * w * (P - F): the map F of a frame with the state P of the frame before, moved to where it is now.

    w = tanh(10 scale) * sigmoid(gate(F, P, elapsed) + whole(max P - max F)) for each channel and cell. The maxima over
    all cells tell a frame that sees nothing: there the gate opens, before it has learned anything else. `scale` starts
    at zero, so that H is F, as it is where `state_valid` is 0. Where P comes from outside of the old map it is F. |w|
    is below 1, so that a state cannot grow from frame to frame without bound; of several memories w is the sum, limited
    to [-1, 1] (`bev/memory.py`). H is the network's next state.

    With a `stride` the state has larger cells, and F in the formula is the largest value of the map in each. All cells
    of the map in a large one get the same change c. As max(F_i + c) = max(F_i) + c, the next state, which is the
    largest value of the changed map in each large cell, is H of the formula.

    All tasks share one state (`PerceptionModel.forward`), so a memory cannot be `when` a task.

    Args:
        layer: of the slot.
        hidden: channels of the gate.
        stride: side of a cell of the state, in cells of the map.
        training: the other options, which do not change what is computed.
    """

    Options = MemoryOptions
    layers = (FusedMap,)
    affine = False

    def __init__(self, layer: Any, hidden: int, stride: int = 1, **training: float) -> None:
        super().__init__()
        channels, rows, columns = layer.shape
        if rows % stride or columns % stride:
            raise InputError(f"memory: stride {stride} does not divide the fused map of {rows} x {columns} cells")
        self.stride = stride
        self.mix = nn.Conv2d(2 * channels, hidden, 3, padding=1)
        self.elapsed = nn.Parameter(torch.zeros(hidden))
        self.gate = nn.Conv2d(hidden, channels, 1)
        self.whole = nn.Linear(channels, channels, bias=False)
        self.scale = nn.Parameter(torch.zeros(channels))
        nn.init.constant_(self.whole.weight, 1 / channels)
        self.to(layer.centers)

    def forward(self, site: Site) -> Tensor:
        fused: Remembered = site.x
        past = fused.past
        if fused.state is None:
            return torch.zeros_like(site.y)
        moved, inside = fused.moved
        now = site.layer.reduce(site.y, moved)
        change = moved - inside * now
        since = past["elapsed"][:, None, None, None] * self.elapsed[:, None, None]
        hidden = torch.relu(self.mix(torch.cat([now, now + change], dim=1)) + since)
        lacking = self.whole(moved.amax(dim=(2, 3)) - now.amax(dim=(2, 3)))[:, :, None, None]
        most = past["state_valid"][:, None, None, None] * torch.tanh(_STEEP * self.scale)[:, None, None]
        mixed = (most * torch.sigmoid(self.gate(hidden) + lacking) * change).to(site.y.dtype)
        spread: Tensor = site.layer.spread(mixed)
        return spread

    def output(self, x: Any, layer: Any, z: Tensor | None) -> Tensor:
        """Without a state the map itself, without an addition; x is `Remembered`."""
        fused: Tensor = x.map if x.state is None else super().output(x, layer, z)
        return fused

    def multiply_adds(self, layer: Any) -> int:
        """The four products of the bilinear sample of each channel are counted, its places are not."""
        of_state = int(self.mix.weight.numel() + self.gate.weight.numel()) + 6 * int(layer.out_channels)
        return of_state // self.stride**2
