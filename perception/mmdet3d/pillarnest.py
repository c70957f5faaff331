"""Converts PillarNeSt (Mao et al., 2024) to our network, with the same outputs.

It is written for mmdet3d 0.18, before that changed its boxes: sizes are width, length, height as ours, and the yaw r of
its boxes is -r - pi/2 of ours, so that our sine is minus its cosine and the reverse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from perception.config import Config
from perception.mmdet3d.centerpoint import (
    ENCODER_SETTINGS,
    NAMES,
    head_config,
    head_of,
    last_layers,
    module_names,
    pillar_detector,
    renamed,
)
from perception.mmdet3d.checkpoint import ConfigSection
from perception.mmdet3d.second import deblocks_config, lidar_config
from perception.model import PerceptionModel
from perception.parts import Trunk

BACKBONE = "ConvNeXt_PC"  # PillarNeSt's class
HEAD_NAMES = NAMES | {"iou": "iou"}
# Depths and channels by name; the configurations of base and large have other names than the published code.
ARCHITECTURES: dict[str, tuple[Sequence[int], Sequence[int]]] = {
    "tiny": ((2, 2, 1, 1, 1), (48, 96, 96, 96, 96)),
    "small": ((3, 3, 2, 1, 1), (48, 192, 192, 192, 192)),
    "base": ((4, 4, 2, 2, 1), (64, 192, 384, 384, 384)),
    "large": ((6, 6, 4, 2, 1), (96, 192, 384, 384, 384)),
    "pc44221_s345_2x": ((4, 4, 2, 2, 1), (64, 192, 384, 384, 384)),
    "pc66421_s345_2x": ((6, 6, 4, 2, 1), (96, 192, 384, 384, 384)),
}
# Settings of ConvNeXt_PC besides its size: supported value, PillarNeSt's default.
_SETTINGS = {
    "norm_cfg": ({"type": "LN2d", "eps": 1e-6},) * 2,
    "act_cfg": ({"type": "GELU"},) * 2,
    "linear_pw_conv": (True, True),
    "gap_before_final_norm": (False, True),
    "first_downsample": (1, 1),
    "large_arch": (None, None),
}
_KERNEL = 7
_UNUSED = "pts_backbone.bias"  # a parameter that its forward pass does not read


def convert(config: ConfigSection, checkpoint: Path, state: Mapping[str, Tensor]) -> tuple[Config, PerceptionModel]:
    """Our configuration and network; arguments as in `centerpoint.convert`."""
    converted = configuration(config)
    head, names = head_of(converted), _trunk_names(converted.model.trunk)
    # Pointwise linear layers are 1x1 convolutions in ours.
    shaped = {
        key: tensor[:, :, None, None] if ".pointwise_conv" in key and tensor.ndim == 2 else tensor
        for key, tensor in state.items()
        if key != _UNUSED
    }
    names |= module_names(head, HEAD_NAMES)
    network, weights = renamed(converted, config.part("model"), shaped, names, checkpoint)
    for name in last_layers(head, "heading"):
        weights[name] = -weights[name][[1, 0]]
    network.load_state_dict(weights)
    return converted, network.eval()


def configuration(config: ConfigSection) -> Config:
    model = config.part("model")
    voxels, head = model.part("pts_voxel_layer"), head_config(model, "CenterPlusHead", HEAD_NAMES)
    settings = ENCODER_SETTINGS | {"mode": ("maxavg", "max"), "encoder_layer": ("PFNLayer", "PFNLayer")}
    lidar = lidar_config(config, voxels, "HeightPillarFeatureNet", settings)
    lidar = lidar.model_copy(update={"pool": "max_mean"})
    trunk = _trunk_config(model.part("pts_backbone"), model.part("pts_neck"))
    return pillar_detector(config, voxels, lidar, trunk, head)


def _trunk_config(backbone: ConfigSection, neck: ConfigSection) -> Trunk:
    backbone.require_all(_SETTINGS)
    blocks, channels = _architecture(backbone)
    joined, strides = list(backbone["out_indices"]), (1, *(2,) * (len(blocks) - 1))
    if joined != list(range(joined[0], len(blocks))):
        raise backbone.unsupported_error(f"out_indices are {joined}, ours joins the last stages")
    up_channels, stride = deblocks_config(neck, channels[joined[0] :], [2**i for i in joined])
    return Trunk(
        kind="convnext",
        channels=channels,
        blocks=blocks,
        strides=strides,
        kernels=(_KERNEL,) * len(blocks),
        first_joined=joined[0],
        up_channels=up_channels,
        stride=stride,
    )


def _architecture(backbone: ConfigSection) -> tuple[tuple[int, ...], tuple[int, ...]]:
    named = backbone["arch"]
    if isinstance(named, dict):
        part = backbone.part("arch")
        blocks, channels = part["depths"], part["channels"]
    elif named in ARCHITECTURES:
        blocks, channels = ARCHITECTURES[named]
    else:
        raise backbone.unsupported_error(f"arch is {named!r}, known are {', '.join(ARCHITECTURES)}")
    return tuple(blocks), (backbone["in_channels"], *channels[1:])  # as there, the first stage keeps its inputs'


def _trunk_names(trunk: Trunk) -> dict[str, str]:
    parts = {
        ".depthwise.layer": ".depthwise_conv",
        ".norm.layer": ".norm",
        ".expand.layer": ".pointwise_conv1",
        ".project.layer": ".pointwise_conv2",
        "": "",  # gamma
    }
    modules: dict[str, str] = {}
    for i, blocks in enumerate(trunk.blocks):
        for j in range(blocks):
            block = f"{i}.{j}"
            modules |= {f"trunk.stages.{block}{ours}": f"pts_backbone.stages.{block}{p}" for ours, p in parts.items()}
        if i:
            for j in (0, 1):
                modules[f"trunk.stages.{i}.down.{j}.layer"] = f"pts_backbone.downsample_layers.{i}.{j}"
    for k, i in enumerate(range(trunk.first_joined, len(trunk.blocks))):
        modules[f"trunk.norms.{k}.layer"] = f"pts_backbone.norm{i}"
        modules[f"trunk.lifts.{k}.conv.layer"] = f"pts_neck.deblocks.{k}.0"
        modules[f"trunk.lifts.{k}.norm.layer"] = f"pts_neck.deblocks.{k}.1"
    return modules
