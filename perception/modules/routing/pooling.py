"""Features of the fused map for routers and classifiers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from perception.io import distributed

HIDDEN = 32
MAX_DEVIATIONS = 5.0  # deviations


class RunningNorm(nn.Module):
    """(B, F, ...) normalised by the running mean and deviation of each feature; outliers are clipped.

    The differences between conditions are small compared to the mean. Running estimates are used in training as well,
    because batches are too small to normalise by their own statistics.
    """

    mean: Tensor
    variance: Tensor
    batches: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("variance", torch.ones(features))
        self.register_buffer("batches", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.mean)
        if self.training:
            self._update(x.detach().transpose(0, 1).flatten(1))
        shape = (1, -1, *(1,) * (x.ndim - 2))
        centred = x - self.mean.reshape(shape)
        return (centred / (self.variance.reshape(shape) + 1e-6).sqrt()).clamp(-MAX_DEVIATIONS, MAX_DEVIATIONS)

    def _update(self, seen: Tensor) -> None:
        """Average over the batches of all processes, exponential from the hundredth on (West, 1979)."""
        self.batches += 1
        rate = (1 / self.batches).clamp(min=0.01)
        mean = distributed.mean(seen.mean(dim=1))
        variance = distributed.mean((seen - mean[:, None]).square().mean(dim=1))
        step = mean - self.mean
        self.variance.copy_((1 - rate) * (self.variance + rate * step**2) + rate * variance)
        self.mean += rate * step


class PooledFeatures(nn.Module):
    """(B, C, rows, columns) -> (B, HIDDEN): mean, deviation and maximum over the cells, through one layer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(RunningNorm(3 * channels), nn.Linear(3 * channels, HIDDEN), nn.ReLU())

    def forward(self, fused: Tensor) -> Tensor:
        cells = fused.flatten(2)
        mean = cells.mean(dim=2)
        deviation = ((cells - mean[..., None]).square().mean(dim=2) + 1e-6).sqrt()
        features: Tensor = self.layers(torch.cat([mean, deviation, cells.amax(dim=2)], dim=1))
        return features


class CellFeatures(nn.Module):
    """(B, C, rows, columns) -> (B, HIDDEN, rows, columns), separately for each cell."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(RunningNorm(channels), nn.Conv2d(channels, HIDDEN, 1), nn.ReLU())

    def forward(self, fused: Tensor) -> Tensor:
        features: Tensor = self.layers(fused)
        return features
