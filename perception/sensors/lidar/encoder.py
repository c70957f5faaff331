"""LiDAR branch: points, grouped into pillars, to a BEV feature map (PointPillars, Lang et al., 2019)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from perception.config import Lidar
from perception.grid import BevGrid
from perception.modules.slot import Slot


class PillarEncoder(nn.Module):
    """Points of each pillar -> features of its cell -> canvas (B, C, rows, columns) on the pillar grid.

    Each point is described by ten numbers: x, y, z, intensity, dt, its offset from the mean of the pillar's
    points (3) and from the middle of the cell (2). All positions are metres, scaled to about one by the grid.
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
        described = torch.cat([points, xyz - mean, xyz[..., :2] - center[:, :, None]], dim=-1)  # B P M 10
        described = described * self.scale * real[..., None]

        # A matrix of points: the export then folds the normalisation into the linear layer.
        features: Tensor = self.norm(self.linear(described.flatten(0, 2))).reshape(b, p, m, self.channels)
        # The greatest of the points is taken before ReLU, which then has M times fewer numbers to look at.
        features = torch.relu((features * real[..., None]).amax(dim=2))  # B P C, zero for padding

        return canvas(features, cells, self.grid.shape)


def canvas(features: Tensor, cells: Tensor, shape: tuple[int, int]) -> Tensor:
    """(B, C, rows, columns) of the features (B, P, C) of the cells (B, P), zero where none is.

    Cells are unique, so that whole rows are put, not added; padding all lands in the dummy cell at a frame's end.
    """
    b, _, channels = features.shape
    rows, columns = shape
    whole = features.new_zeros(b * (rows * columns + 1), channels)
    starts = torch.arange(b, device=cells.device)[:, None] * (rows * columns + 1)
    whole = whole.index_put(((cells + starts).flatten(),), features.flatten(0, 1))
    whole = whole.reshape(b, rows * columns + 1, channels)[:, :-1]
    return whole.transpose(1, 2).reshape(b, channels, rows, columns)
