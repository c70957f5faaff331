"""LiDAR branch with voxel feature encoding: a point sees what its pillar holds (VoxelNet, Zhou and Tuzel, 2018)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from perception.config import Lidar
from perception.grid import BevGrid
from perception.modules.slot import Slot
from perception.sensors.lidar.encoder import canvas

POINT_FEATURES = 11  # numbers that describe a point


class VoxelFeatureEncoder(nn.Module):
    """Points of each pillar -> features of its cell -> canvas (B, C, rows, columns) on the pillar grid.

    Each point is described by eleven numbers: x, y, z, intensity, dt, its offset from the mean of the pillar's points
    (3) and from the middle of the pillar (3). All positions are metres, scaled to about one by the grid. Each layer but
    the first sees them beside the pillar_max of the pillar. As in mmdet3d's HardVFE, and with one layer in its
    PillarFeatureNet, the rows of a pillar that no point fills take part in the pillar_max, described by zeros.
    """

    scale: Tensor

    def __init__(self, config: Lidar, grid: BevGrid) -> None:
        super().__init__()
        self.grid = grid
        widths = (POINT_FEATURES, *config.hidden, config.channels)
        self.layers = nn.ModuleList(
            _Layer(f"lidar.pillar{i}", inputs, outputs, shared=i > 0)
            for i, (inputs, outputs) in enumerate(pairwise(widths))
        )
        far = max(abs(v) for v in (*grid.x, *grid.y))
        high = max(abs(v) for v in grid.z)
        place, near = [1 / far, 1 / far, 1 / high], (1 / grid.cell,) * 2
        self.register_buffer("scale", torch.tensor([*place, 1 / 255, 2.0, *near, 1.0, *near, 1.0]), persistent=False)

    def forward(self, points: Tensor, counts: Tensor, cells: Tensor) -> Tensor:
        """points (B, P, M, 5) float, counts (B, P) int, cells (B, P) int -> (B, C, rows, columns)."""
        cells = cells.long()
        x, pillar_max = self._describe(points, counts, cells).flatten(0, 1), None  # BP M 11
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x, pillar_max))
            pillar_max = x.amax(dim=1)
        # The greatest of the points is taken before ReLU, which then has M times fewer numbers to look at.
        features = torch.relu(self.layers[-1](x, pillar_max).amax(dim=1))  # BP C

        return canvas(features.unflatten(0, counts.shape), cells, self.grid.shape)

    def _describe(self, points: Tensor, counts: Tensor, cells: Tensor) -> Tensor:
        """(B, P, M, 11)."""
        columns = self.grid.shape[1]
        real = torch.arange(points.shape[2], device=points.device) < counts[..., None]  # B P M
        xyz = points[..., :3]
        mean = xyz.sum(dim=2, keepdim=True) / counts.clamp(min=1)[..., None, None]
        row = torch.div(cells, columns, rounding_mode="floor")
        cell = torch.stack([cells - row * columns, row], dim=-1).to(points.dtype) + 0.5
        center = cell * self.grid.cell + cell.new_tensor([self.grid.x[0], self.grid.y[0]])  # B P 2
        center = torch.cat([center, torch.full_like(center[..., :1], sum(self.grid.z) / 2)], dim=-1)
        features = torch.cat([points, xyz - mean, xyz - center[:, :, None]], dim=-1)
        return features * self.scale * real[..., None]


class _Layer(nn.Module):
    """(N, M, I) of points and (N, I) of their pillars -> (N, M, O).

    A linear layer of both, concatenated, is the sum of one for each: the pillar's is computed once, not for each of
    its points.
    """

    def __init__(self, name: str, inputs: int, outputs: int, shared: bool) -> None:
        super().__init__()
        self.points = Slot(name, nn.Linear(inputs, outputs, bias=False))
        self.pillar = Slot(f"{name}.shared", nn.Linear(inputs, outputs, bias=False)) if shared else None
        self.norm = Slot(f"{name}.norm", nn.BatchNorm1d(outputs, eps=1e-3))

    def forward(self, x: Tensor, pillar_max: Tensor | None) -> Tensor:
        y: Tensor = self.points(x.flatten(0, 1))
        if self.pillar is not None:
            y = (y.unflatten(0, x.shape[:2]) + self.pillar(pillar_max)[:, None]).flatten(0, 1)
        y = self.norm(y).unflatten(0, x.shape[:2])
        return y
