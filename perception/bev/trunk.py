"""The 2-D BEV trunk: stages and deblocks of SECOND (Yan et al., 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from perception.config import Trunk as TrunkConfig
from perception.layers import ConvBlock


class Trunk(nn.Module):
    """(B, C, rows, columns) at the fused stride -> (B, channels, ...) at the heads' stride.

    Each stage is coarser than the one before; the deblocks (`lifts`) resample the outputs of all to the heads' grid.
    """

    def __init__(self, config: TrunkConfig, inputs: int, stride: int) -> None:
        super().__init__()
        self.channels = config.up_channels * len(config.channels)
        self.stages, self.lifts = nn.ModuleList(), nn.ModuleList()
        for i, (channels, blocks, step) in enumerate(zip(config.channels, config.blocks, config.strides, strict=True)):
            stride *= step
            self.stages.append(stage(i, inputs, channels, blocks, step))
            self.lifts.append(lift(config, i, channels, stride))
            inputs = channels

    def forward(self, x: Tensor) -> Tensor:
        lifted = []
        for stage, lift in zip(self.stages, self.lifts, strict=True):
            x = stage(x)
            lifted.append(lift(x))
        return torch.cat(lifted, dim=1)


def stage(index: int, inputs: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    """A strided convolution and `blocks` more behind it."""
    layers = [ConvBlock(f"trunk.stage{index}.0", inputs, channels, stride=stride)]
    layers += [ConvBlock(f"trunk.stage{index}.{i + 1}", channels, channels) for i in range(blocks)]
    return nn.Sequential(*layers)


def lift(config: TrunkConfig, index: int, channels: int, stride: int) -> ConvBlock:
    """The deblock that resamples an output of this stride to the heads' grid."""
    down = max(config.stride // stride, 1)
    return ConvBlock(
        f"trunk.lift{index}",
        channels,
        config.up_channels,
        kernel=1 if down == 1 else down if config.down == "patch" else 3,
        stride=down,
        up=max(stride // config.stride, 1),
    )
