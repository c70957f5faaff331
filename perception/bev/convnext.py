"""A BEV trunk of ConvNeXt blocks (Liu et al., 2022), as in PillarNeSt (Mao et al., 2024)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perception.bev.trunk import lift
from perception.config import Trunk
from perception.distributed import drawn
from perception.modules.computation.computation import ChannelNorm
from perception.modules.slot import Slot

EXPANSION = 4  # of the channels between the pointwise convolutions
NORM_EPSILON, DOWN_NORM_EPSILON = 1e-6, 1e-5  # as in PillarNeSt: in blocks and before the deblocks; before the strides


class ConvNextBlock(nn.Module):
    """(B, C, rows, columns) -> the same shape: x + gamma * project(GELU(expand(norm(depthwise(x))))).

    The pointwise layers are convolutions, not linear layers, so that they become INT8 as the other convolutions do.

    Args:
        name: prefix of the slots.
        kernel: of the depthwise convolution.
        drop: chance that the block is skipped for a frame in training (stochastic depth, Huang et al., 2016).
    """

    def __init__(self, name: str, channels: int, kernel: int, drop: float) -> None:
        super().__init__()
        inner = EXPANSION * channels
        depthwise = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
        self.depthwise = Slot(f"{name}.depthwise", depthwise)
        self.norm = Slot(f"{name}.norm", ChannelNorm(channels, eps=NORM_EPSILON))
        self.expand = Slot(f"{name}.expand", nn.Conv2d(channels, inner, 1))
        self.project = Slot(f"{name}.project", nn.Conv2d(inner, channels, 1))
        self.gamma = nn.Parameter(torch.ones(channels))  # layer scale (Touvron et al., 2021)
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(F.gelu(self.expand(self.norm(self.depthwise(x)))))
        y = self.gamma[:, None, None] * y
        if self.training and self.drop:
            stays = drawn(lambda frames: torch.rand(frames, 1, 1, 1, device=x.device), len(x)) >= self.drop
            y = torch.where(stays, y / (1 - self.drop), 0.0)
        return x + y


class ConvNextTrunk(nn.Module):
    """(B, C, rows, columns) at the fused stride -> (B, channels, ...) at the heads' stride.

    The outputs of the last stages are normalised, and the deblocks (`lifts`) resample them to the heads' grid.
    """

    def __init__(self, config: Trunk, inputs: int, stride: int) -> None:
        super().__init__()
        self.first = config.first_joined
        self.channels = config.up_channels * (len(config.channels) - self.first)
        self.stages, self.norms, self.lifts = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        drops = torch.linspace(0, config.drop_path, sum(config.blocks)).tolist()
        for i, (channels, step) in enumerate(zip(config.channels, config.strides, strict=True)):
            own, drops = drops[: config.blocks[i]], drops[config.blocks[i] :]
            self.stages.append(_stage(i, inputs, channels, step, config.kernels[i], own))
            inputs, stride = channels, stride * step
            if i >= self.first:
                self.norms.append(Slot(f"trunk.stage{i}.norm", ChannelNorm(channels, eps=NORM_EPSILON)))
                self.lifts.append(lift(config, i - self.first, channels, stride))

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for stage in self.stages:
            x = stage(x)
            outputs.append(x)
        joined = zip(outputs[self.first :], self.norms, self.lifts, strict=True)
        return torch.cat([lift(norm(x)) for x, norm, lift in joined], dim=1)


def _stage(index: int, inputs: int, channels: int, stride: int, kernel: int, drops: Sequence[float]) -> nn.Sequential:
    """A block for each of `drops`; before them the stride, as a normalisation and a convolution of patches.

    A stage of stride 1 that keeps the number of channels has blocks only.
    """
    name, layers = f"trunk.stage{index}", OrderedDict[str, nn.Module]()
    if stride > 1 or inputs != channels:
        norm = Slot(f"{name}.down.norm", ChannelNorm(inputs, eps=DOWN_NORM_EPSILON))
        layers["down"] = nn.Sequential(norm, Slot(f"{name}.down", nn.Conv2d(inputs, channels, stride, stride)))
    for i, drop in enumerate(drops):
        layers[str(i)] = ConvNextBlock(f"{name}.{i}", channels, kernel, drop)
    return nn.Sequential(layers)
