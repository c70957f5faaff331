"""SECOND and SECONDFPN of mmdet3d, the counterpart of our trunk."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor

from perception.config import Trunk
from perception.mmdet3d.flat_config import ConfigSection


def trunk_config(backbone: ConfigSection, neck: ConfigSection) -> Trunk:
    """The configuration of our trunk, on a BEV feature map of stride 1.

    Raises:
        InputError: settings that our trunk does not support.
    """
    backbone.require("type", "SECOND")
    backbone.require("conv_cfg", {"type": "Conv2d", "bias": False}, default=None)
    channels, blocks, strides = (tuple(backbone[key]) for key in ("out_channels", "layer_nums", "layer_strides"))
    up_channels, stride = deblocks_config(neck, channels, [prod(strides[: i + 1]) for i in range(len(strides))])
    return Trunk(
        channels=channels, blocks=blocks, strides=strides, up_channels=up_channels, stride=stride, down="patch"
    )


def deblocks_config(neck: ConfigSection, channels: Sequence[int], strides: Sequence[int]) -> tuple[int, int]:
    """`up_channels` and `stride` of our trunk.

    Args:
        channels: of the outputs that the neck reads.
        strides: of these outputs.

    Raises:
        InputError: settings that our trunk does not support.
    """
    neck.require("type", "SECONDFPN")
    neck.require("conv_cfg", {"type": "Conv2d", "bias": False}, default=None)
    neck.require("upsample_cfg", {"type": "deconv", "bias": False}, default=None)
    neck.require("in_channels", channels)
    up_channels = neck["out_channels"]
    output_strides = {stride / up for stride, up in zip(strides, neck["upsample_strides"], strict=True)}
    if len(output_strides) != 1 or len(set(up_channels)) != 1:
        raise neck.unsupported("its stages must come out with the same channels, on the same grid")
    return up_channels[0], round(output_strides.pop())


def trunk_names(config: Trunk) -> dict[str, str]:
    """Our module name -> mmdet3d's."""
    modules = {}
    for i, blocks in enumerate(config.blocks):
        for j in range(blocks + 1):  # mmdet3d lists convolution, normalisation and ReLU in one sequence
            modules[f"trunk.stages.{i}.{j}.conv.layer"] = f"pts_backbone.blocks.{i}.{3 * j}"
            modules[f"trunk.stages.{i}.{j}.norm.layer"] = f"pts_backbone.blocks.{i}.{3 * j + 1}"
        modules[f"trunk.lifts.{i}.conv.layer"] = f"pts_neck.deblocks.{i}.0"
        modules[f"trunk.lifts.{i}.norm.layer"] = f"pts_neck.deblocks.{i}.1"
    return modules


def transpose_unit_stride_deblocks(weights: dict[str, Tensor], neck: ConfigSection) -> None:
    """Transpose in place the weights of deblocks of stride 1: deconvolutions in mmdet3d, convolutions in our trunk."""
    for i, up in enumerate(neck["upsample_strides"]):
        if up == 1 and not neck.get("use_conv_for_no_stride", False):
            name = f"trunk.lifts.{i}.conv.layer.weight"
            weights[name] = weights[name].transpose(0, 1)
