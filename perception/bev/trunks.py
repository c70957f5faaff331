"""Fusion of the sensors' BEV feature maps, and the 2-D trunks: SECOND's, with a feature pyramid, of ConvNeXt blocks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perception.io.distributed import draw_locally
from perception.modules.computation.computation import ChannelNorm
from perception.modules.slot import ConvBlock, Slot
from perception.parts import Trunk as TrunkConfig


class Fuse(nn.Module):
    """BEV feature maps of (channels, stride in pillars) each -> (B, C, rows, columns) at the fused stride.

    A missing sensor has a map of zeros; training drops sensors at random to learn this.
    """

    def __init__(self, inputs: list[tuple[int, int]], channels: int, stride: int) -> None:
        super().__init__()
        self.finer = [max(s // stride, 1) for _, s in inputs]  # by which coarser maps are enlarged
        self.adapt = nn.ModuleList(
            ConvBlock(f"fuse.adapt{i}", c, channels, kernel=3 if s < stride else 1, stride=max(stride // s, 1))
            for i, (c, s) in enumerate(inputs)
        )
        self.mix = ConvBlock("fused", channels * len(inputs), channels)

    def forward(self, maps: list[Tensor]) -> Tensor:
        adapted = [adapt(m) for adapt, m in zip(self.adapt, maps, strict=True)]
        size = max((m.shape[-2] * finer, m.shape[-1] * finer) for m, finer in zip(adapted, self.finer, strict=True))
        adapted = [m if m.shape[-2:] == size else F.interpolate(m, size=size, mode="nearest") for m in adapted]
        fused: Tensor = self.mix(torch.cat(adapted, dim=1))
        return fused


class SingleSensor(nn.Module):
    """The BEV feature map of a single sensor, unchanged."""

    def forward(self, maps: list[Tensor]) -> Tensor:
        (single,) = maps
        return single


class Trunk(nn.Module):
    """(B, C, rows, columns) at the fused stride -> (B, channels, ...) at the heads' stride.

    SECOND's stages, each coarser than the one before, and deblocks (`lifts`), which resample the outputs of all to the
    heads' grid (Yan et al., 2018).
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


EXPANSION = 4  # of the channels between the pointwise convolutions
NORM_EPSILON, DOWN_NORM_EPSILON = 1e-6, 1e-5  # as in PillarNeSt: in blocks and before the deblocks; before the strides


class ConvNextBlock(nn.Module):
    """(B, C, rows, columns) -> the same shape: x + gamma * project(GELU(expand(norm(depthwise(x))))).

    The pointwise layers are convolutions, not linear layers, so that they become INT8 as the other convolutions do.
    `drop` is the chance that it is skipped for a frame in training (stochastic depth, Huang et al., 2016).
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
            stays = draw_locally(lambda frames: torch.rand(frames, 1, 1, 1, device=x.device), len(x)) >= self.drop
            y = torch.where(stays, y / (1 - self.drop), 0.0)
        return x + y


class ConvNextTrunk(nn.Module):
    """(B, C, rows, columns) at the fused stride -> (B, channels, ...) at the heads' stride.

    The outputs of the last stages are normalised, and the deblocks (`lifts`) resample them to the heads' grid.
    """

    def __init__(self, config: TrunkConfig, inputs: int, stride: int) -> None:
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


class PyramidTrunk(nn.Module):
    """(B, C, rows, columns) -> (B, channels, ...) on the grid of each stage, finest first.

    SECOND's stages with a feature pyramid (Lin et al., 2017): features of coarser stages are added to the finer ones.
    """

    def __init__(self, config: TrunkConfig, inputs: int) -> None:
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
