"""Fusion of the sensors' BEV feature maps."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perception.modules.layers import ConvBlock


class Fuse(nn.Module):
    """BEV feature maps of the sensors, each at its own stride, -> (B, C, rows, columns) at the fused stride.

    A missing sensor has a map of zeros; training drops sensors at random to learn this.

    Args:
        inputs: (channels, stride in pillars) of each sensor's map.
        channels: C.
        stride: of the fused map, in pillars.
    """

    def __init__(self, inputs: list[tuple[int, int]], channels: int, stride: int) -> None:
        super().__init__()
        self.adapt = nn.ModuleList(
            ConvBlock(f"fuse.adapt{i}", c, channels, kernel=3 if s < stride else 1, stride=max(stride // s, 1))
            for i, (c, s) in enumerate(inputs)
        )
        self.mix = ConvBlock("fused", channels * len(inputs), channels)

    def forward(self, maps: list[Tensor]) -> Tensor:
        adapted = [adapt(m) for adapt, m in zip(self.adapt, maps, strict=True)]
        size = max(tuple(m.shape[-2:]) for m in adapted)
        adapted = [m if m.shape[-2:] == size else F.interpolate(m, size=size, mode="nearest") for m in adapted]
        fused: Tensor = self.mix(torch.cat(adapted, dim=1))
        return fused


class SingleSensor(nn.Module):
    """The BEV feature map of a single sensor, unchanged."""

    def forward(self, maps: list[Tensor]) -> Tensor:
        (single,) = maps
        return single
