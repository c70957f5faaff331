"""SECOND and SECONDFPN of mmdet3d, which are our trunk."""

from __future__ import annotations

from torch import Tensor

from perception.config import Trunk
from perception.mmdet3d.config import Settings


def trunk(backbone: Settings, neck: Settings) -> Trunk:
    """The configuration of our trunk, on a map of stride 1.

    Raises:
        InputError: settings that our trunk has no counterpart of.
    """
    backbone.require("type", "SECOND")
    backbone.require("conv_cfg", {"type": "Conv2d", "bias": False}, default=None)
    neck.require("type", "SECONDFPN")
    neck.require("conv_cfg", {"type": "Conv2d", "bias": False}, default=None)
    neck.require("upsample_cfg", {"type": "deconv", "bias": False}, default=None)
    channels, blocks, strides = (tuple(backbone[key]) for key in ("out_channels", "layer_nums", "layer_strides"))
    neck.require("in_channels", channels)
    ups, out = neck["upsample_strides"], neck["out_channels"]
    stride, heads = 1, set()
    for step, up in zip(strides, ups, strict=True):
        stride *= step
        heads.add(stride / up)
    if len(heads) != 1 or len(set(out)) != 1:
        raise neck.refused("its stages must come out with the same channels, on the same grid")
    return Trunk(
        channels=channels, blocks=blocks, strides=strides, up_channels=out[0], stride=round(heads.pop()), down="patch"
    )


def trunk_modules(config: Trunk) -> dict[str, str]:
    """Our module -> theirs."""
    modules = {}
    for i, blocks in enumerate(config.blocks):
        for j in range(blocks + 1):  # in theirs convolution, normalisation and ReLU follow each other in one list
            modules[f"trunk.stages.{i}.{j}.conv.layer"] = f"pts_backbone.blocks.{i}.{3 * j}"
            modules[f"trunk.stages.{i}.{j}.norm.layer"] = f"pts_backbone.blocks.{i}.{3 * j + 1}"
        modules[f"trunk.lifts.{i}.conv.layer"] = f"pts_neck.deblocks.{i}.0"
        modules[f"trunk.lifts.{i}.norm.layer"] = f"pts_neck.deblocks.{i}.1"
    return modules


def same_lifts(weights: dict[str, Tensor], neck: Settings) -> None:
    """Turn the weights of deconvolutions of stride 1, which are convolutions in our trunk, in place."""
    for i, up in enumerate(neck["upsample_strides"]):
        if up == 1 and not neck.get("use_conv_for_no_stride", False):
            name = f"trunk.lifts.{i}.conv.layer.weight"
            weights[name] = weights[name].transpose(0, 1)
