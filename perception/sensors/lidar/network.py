"""LiDAR branch: pillars of points to a BEV feature map."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor, nn

from perception.grid import BevGrid
from perception.modules.slot import Slot
from perception.sensors.lidar.config import Lidar
from perception.sensors.network import SensorNetwork


class _Encoder(SensorNetwork):
    """Points of each pillar -> features of its cell -> BEV feature map (B, C, rows, columns) on the pillar grid.

    A point has these features: x, y, z, intensity, dt, its offset from the mean of the pillar's points (3) and from the
    centre of the cell, along x and y or along all `axes`. Positions in metres are scaled to about one by the size of
    the grid.
    """

    scale: Tensor

    def __init__(self, config: Lidar, grid: BevGrid, axes: int) -> None:
        super().__init__()
        self.channels, self.grid, self.axes = config.channels, grid, axes
        far = max(abs(v) for v in (*grid.x, *grid.y))
        high = max(abs(v) for v in grid.z)
        near = [1 / grid.cell, 1 / grid.cell, 1.0]
        scale = [1 / far, 1 / far, 1 / high, 1 / 255, 2.0, *near, *near[:axes]]
        self.register_buffer("scale", torch.tensor(scale), persistent=False)

    def forward(self, inputs: Mapping[str, Tensor], training: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        points, counts, cells = inputs["pillar_points"], inputs["pillar_counts"], inputs["pillar_cells"].long()
        real = torch.arange(points.shape[2], device=points.device) < counts[..., None]  # B P M
        features = self._of_pillars(self._of_points(points, counts, cells, real), counts, real)
        return scatter_pillars(features, cells, self.grid.shape), {}

    def _of_pillars(self, points: Tensor, counts: Tensor, real: Tensor) -> Tensor:
        """(B, P, C) from the features of points (B, P, M, 8 + axes)."""
        raise NotImplementedError

    def _of_points(self, points: Tensor, counts: Tensor, cells: Tensor, real: Tensor) -> Tensor:
        """(B, P, M, 8 + axes), zero for padding."""
        columns = self.grid.shape[1]
        xyz = points[..., :3]
        mean = xyz.sum(dim=2, keepdim=True) / counts.clamp(min=1)[..., None, None]
        column = (cells % columns).to(points.dtype)
        row = torch.div(cells, columns, rounding_mode="floor").to(points.dtype)
        center = torch.stack([column + 0.5, row + 0.5], dim=-1) * self.grid.cell  # B P 2
        center = center + center.new_tensor([self.grid.x[0], self.grid.y[0]])
        if self.axes == 3:
            center = torch.cat([center, torch.full_like(center[..., :1], sum(self.grid.z) / 2)], dim=-1)
        inputs = torch.cat([points, xyz - mean, xyz[..., : self.axes] - center[:, :, None]], dim=-1)
        return inputs * self.scale * real[..., None]


class PillarEncoder(_Encoder):
    """One layer for the points, and their maximum (PointPillars, Lang et al., 2019); ten features a point."""

    def __init__(self, config: Lidar, grid: BevGrid) -> None:
        super().__init__(config, grid, axes=2)
        self.real_statistics = config.encoder == "real"
        self.linear = Slot("lidar.pillar", nn.Linear(10, config.channels, bias=False))
        self.norm = Slot("lidar.pillar.norm", nn.BatchNorm1d(config.channels, eps=1e-3))

    def _of_pillars(self, points: Tensor, counts: Tensor, real: Tensor) -> Tensor:
        # A module at a slot can train its normalisation while the base is in evaluation mode.
        trains = self.real_statistics and any(part.training for part in self.modules())
        return self._of_real_points(points, real) if trains else self._of_all_points(points, real)

    def _of_all_points(self, inputs: Tensor, real: Tensor) -> Tensor:
        """(B, P, C) features of pillars, zero for padding; computes the padding as well, for tensors of fixed shape."""
        # Flattened to (points, features), so that the export folds the normalisation into the linear layer.
        features: Tensor = self.norm(self.linear(inputs.flatten(0, 2))).reshape(*real.shape, self.channels)
        # The maximum over points before ReLU is the same as after it, and M times cheaper.
        return torch.relu((features * real[..., None]).amax(dim=2))

    def _of_real_points(self, inputs: Tensor, real: Tensor) -> Tensor:
        """The same (B, P, C) from the real points alone, whose statistics a training normalisation then takes."""
        b, p, m = real.shape
        rows = real.flatten().nonzero()[:, 0]
        if len(rows) < 2 and not isinstance(self.norm.layer, nn.SyncBatchNorm):  # which takes empty batches
            with _evaluating(self):  # there are no statistics to take
                return self._of_all_points(inputs, real)
        frames = torch.div(rows, p * m, rounding_mode="floor")
        features = self.norm(self.linear(inputs.flatten(0, 2)[rows], frames), frames)
        pillars = torch.div(rows, m, rounding_mode="floor")[:, None].expand_as(features)
        # The maximum of zero and all points of a pillar is that after ReLU.
        return (
            features.new_zeros(b * p, self.channels).scatter_reduce(0, pillars, features, "amax").unflatten(0, (b, p))
        )


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """The network and its parts in evaluation mode, and then in the modes that they had."""
    modes = {part: part.training for part in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


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


class VoxelFeatureEncoder(_Encoder):
    """Stacked layers for the points (VoxelNet, Zhou and Tuzel, 2018); eleven features a point.

    Layers after the first also read the maximum over the pillar's points. As in mmdet3d's HardVFE (and
    PillarFeatureNet, with one layer) the padding of a pillar is included in the maximum, as points of zeros. With the
    pool `max_mean`, as in PillarNeSt (Mao et al., 2024), the result is the mean of that maximum and of the sum over all
    points, padding too, divided by the number of real points.
    """

    def __init__(self, config: Lidar, grid: BevGrid) -> None:
        super().__init__(config, grid, axes=3)
        self.pool = config.pool
        widths = (11, *config.hidden, config.channels)
        self.layers = nn.ModuleList(
            _Layer(f"lidar.pillar{i}", inputs, outputs, shared=i > 0)
            for i, (inputs, outputs) in enumerate(pairwise(widths))
        )

    def _of_pillars(self, points: Tensor, counts: Tensor, real: Tensor) -> Tensor:
        x, pillar_max = points.flatten(0, 1), None  # BP M 11
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
        return features.unflatten(0, counts.shape)


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
