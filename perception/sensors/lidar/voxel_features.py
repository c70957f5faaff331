"""LiDAR branch with stacked voxel feature encoding layers (VoxelNet, Zhou and Tuzel, 2018)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from perception.config import Lidar
from perception.grid import BevGrid
from perception.modules.slot import Slot
from perception.sensors.lidar.encoder import scatter_pillars

POINT_FEATURES = 11


class VoxelFeatureEncoder(nn.Module):
    """Points of each pillar -> features of its cell -> BEV feature map (B, C, rows, columns) on the pillar grid.

    A point has eleven features: x, y, z, intensity, dt, its offset from the mean of the pillar's points (3) and from
    the centre of the pillar (3). Positions in metres are scaled to about one by the size of the grid. Layers after the
    first also read the maximum over the pillar's points. As in mmdet3d's HardVFE (and PillarFeatureNet, with one layer)
    the padding of a pillar is included in the maximum, as points of zeros. With the pool `max_mean`, as in PillarNeSt
    (Mao et al., 2024), the result is the mean of that maximum and of the sum over all points, padding too, divided by
    the number of real points.
    """

    scale: Tensor

    def __init__(self, config: Lidar, grid: BevGrid) -> None:
        super().__init__()
        self.grid, self.pool = grid, config.pool
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
        x, pillar_max = self._point_features(points, counts, cells).flatten(0, 1), None  # BP M 11
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x, pillar_max))
            pillar_max = x.amax(dim=1)
        features = self.layers[-1](x, pillar_max)  # BP M C
        if self.pool == "max":
            # The maximum over points before ReLU is the same as after it, and M times cheaper.
            features = torch.relu(features.amax(dim=1))
        else:
            features = torch.relu(features)
            mean = features.sum(dim=1) / counts.clamp(min=1).flatten()[:, None]
            features = (features.amax(dim=1) + mean) / 2

        return scatter_pillars(features.unflatten(0, counts.shape), cells, self.grid.shape)

    def _point_features(self, points: Tensor, counts: Tensor, cells: Tensor) -> Tensor:
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
    """Features (N, M, I) of points and (N, I) of their pillars -> (N, M, O).

    A linear layer on their concatenation, computed as a sum of two: that of the pillar once, not for each point.
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
