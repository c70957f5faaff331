"""What routers after the fusion look at, and the slots that they serve."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from perception.modules.bank import Bank

HIDDEN = 32


def after_fusion(bank: Bank) -> list[str]:
    """The slots that compute when the fused map is there."""
    return [name for name in bank.slots if name.startswith(("trunk.", "heads."))]


class Pooled(nn.Module):
    """(B, C, rows, columns) -> (B, HIDDEN): mean, deviation and maximum over the cells, through one layer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(3 * channels), nn.Linear(3 * channels, HIDDEN), nn.ReLU())

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
        self.layers = nn.Sequential(nn.Conv2d(channels, HIDDEN, 1), nn.ReLU())

    def forward(self, fused: Tensor) -> Tensor:
        features: Tensor = self.layers(fused)
        return features
