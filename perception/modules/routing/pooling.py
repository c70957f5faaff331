"""Features of the fused map for routers and classifiers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

HIDDEN = 32
FAR = 5.0  # deviations


class Standardised(nn.Module):
    """(B, F, ...) standardised by each feature's running mean and deviation in training.

    Conditions differ by little compared with what all frames have in common. A batch has too few frames to normalise
    by, so running estimates are used in training as well; outliers are clipped.
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
            self._learn(x.detach().transpose(0, 1).flatten(1))
        shape = (1, -1, *(1,) * (x.ndim - 2))
        centred = x - self.mean.reshape(shape)
        return (centred / (self.variance.reshape(shape) + 1e-6).sqrt()).clamp(-FAR, FAR)

    def _learn(self, seen: Tensor) -> None:
        """Averages over all batches; from the hundredth on, later ones weigh more (West, 1979)."""
        self.batches += 1
        rate = (1 / self.batches).clamp(min=0.01)
        step = seen.mean(dim=1) - self.mean
        self.variance.copy_((1 - rate) * (self.variance + rate * step**2) + rate * seen.var(dim=1, correction=0))
        self.mean += rate * step


class Pooled(nn.Module):
    """(B, C, rows, columns) -> (B, HIDDEN): mean, deviation and maximum over the cells, through one layer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(Standardised(3 * channels), nn.Linear(3 * channels, HIDDEN), nn.ReLU())

    def forward(self, fused: Tensor) -> Tensor:
        cells = fused.flatten(2)
        mean = cells.mean(dim=2)
        deviation = ((cells - mean[..., None]).square().mean(dim=2) + 1e-6).sqrt()
        features: Tensor = self.layers(torch.cat([mean, deviation, cells.amax(dim=2)], dim=1))
        return features


class PerCell(nn.Module):
    """(B, C, rows, columns) -> (B, HIDDEN, rows, columns), each cell on its own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(Standardised(channels), nn.Conv2d(channels, HIDDEN, 1), nn.ReLU())

    def forward(self, fused: Tensor) -> Tensor:
        features: Tensor = self.layers(fused)
        return features
