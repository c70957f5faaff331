"""A trunk with one output for each stage: SECOND's stages with a feature pyramid (Lin et al., 2017)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from perception.bev.trunk import stage
from perception.config import Trunk
from perception.layers import ConvBlock


class PyramidTrunk(nn.Module):
    """(B, C, rows, columns) -> (B, channels, ...) on the grid of each stage, finest first.

    Features of coarser stages are added to the finer ones.
    """

    def __init__(self, config: Trunk, inputs: int) -> None:
        super().__init__()
        self.channels = config.up_channels
        self.stages, self.laterals, self.smooths = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for i, (channels, blocks, stride) in enumerate(
            zip(config.channels, config.blocks, config.strides, strict=True)
        ):
            self.stages.append(stage(i, inputs, channels, blocks, stride))
            self.laterals.append(ConvBlock(f"trunk.lateral{i}", channels, self.channels, kernel=1))
            self.smooths.append(ConvBlock(f"trunk.smooth{i}", self.channels, self.channels))
            inputs = channels

    def forward(self, x: Tensor) -> list[Tensor]:
        levels: list[Tensor] = []
        for stage_, lateral in zip(self.stages, self.laterals, strict=True):
            x = stage_(x)
            levels.append(lateral(x))
        for i in range(len(levels) - 1, 0, -1):
            levels[i - 1] = levels[i - 1] + F.interpolate(levels[i], size=levels[i - 1].shape[-2:], mode="nearest")
        return [smooth(level) for smooth, level in zip(self.smooths, levels, strict=True)]
