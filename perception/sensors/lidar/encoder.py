"""LiDAR branch: pillars of points to a BEV feature map (PointPillars, Lang et al., 2019)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from perception.config import Lidar
from perception.grid import BevGrid
from perception.modules.slot import Slot


class PillarEncoder(nn.Module):
    """Points of each pillar -> features of its cell -> BEV feature map (B, C, rows, columns) on the pillar grid.

    A point has ten features: x, y, z, intensity, dt, its offset from the mean of the pillar's points (3) and from the
    centre of the cell (2). Positions in metres are scaled to about one by the size of the grid.
    """

    scale: Tensor

    def __init__(self, config: Lidar, grid: BevGrid) -> None:
        super().__init__()
        self.grid, self.channels = grid, config.channels
        self.linear = Slot("lidar.pillar", nn.Linear(10, config.channels, bias=False))
        self.norm = Slot("lidar.pillar.norm", nn.BatchNorm1d(config.channels, eps=1e-3))
        far = max(abs(v) for v in (*grid.x, *grid.y))
        high = max(abs(v) for v in grid.z)
        scale = [1 / far, 1 / far, 1 / high, 1 / 255, 2.0, *(1 / grid.cell,) * 2, 1.0, *(1 / grid.cell,) * 2]
        self.register_buffer("scale", torch.tensor(scale), persistent=False)

    def forward(self, points: Tensor, counts: Tensor, cells: Tensor) -> Tensor:
        """points (B, P, M, 5) float, counts (B, P) int, cells (B, P) int -> (B, C, rows, columns)."""
        b, p, m, _ = points.shape
        columns = self.grid.shape[1]
        cells = cells.long()

        real = torch.arange(m, device=points.device) < counts[..., None]  # B P M
        xyz = points[..., :3]
        mean = xyz.sum(dim=2, keepdim=True) / counts.clamp(min=1)[..., None, None]
        column = (cells % columns).to(points.dtype)
        row = torch.div(cells, columns, rounding_mode="floor").to(points.dtype)
        center = torch.stack([column + 0.5, row + 0.5], dim=-1) * self.grid.cell  # B P 2
        center = center + center.new_tensor([self.grid.x[0], self.grid.y[0]])
        inputs = torch.cat([points, xyz - mean, xyz[..., :2] - center[:, :, None]], dim=-1)  # B P M 10
        inputs = inputs * self.scale * real[..., None]

        # Flattened to (points, features), so that the export folds the normalisation into the linear layer.
        features: Tensor = self.norm(self.linear(inputs.flatten(0, 2))).reshape(b, p, m, self.channels)
        # The maximum over points before ReLU is the same as after it, and M times cheaper.
        features = torch.relu((features * real[..., None]).amax(dim=2))  # B P C, zero for padding

        return scatter_pillars(features, cells, self.grid.shape)


def scatter_pillars(features: Tensor, cells: Tensor, shape: tuple[int, int]) -> Tensor:
    """(B, C, rows, columns) from features (B, P, C) of cells (B, P); zero elsewhere.

    Cells are unique, so that rows are assigned, not added; padding goes to an extra cell at the end of each frame.
    """
    b, _, channels = features.shape
    rows, columns = shape
    flat = features.new_zeros(b * (rows * columns + 1), channels)
    starts = torch.arange(b, device=cells.device)[:, None] * (rows * columns + 1)
    flat = flat.index_put(((cells + starts).flatten(),), features.flatten(0, 1))
    flat = flat.reshape(b, rows * columns + 1, channels)[:, :-1]
    return flat.transpose(1, 2).reshape(b, channels, rows, columns)
