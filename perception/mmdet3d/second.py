"""Pillar settings, SECOND and SECONDFPN of mmdet3d, the counterparts of our LiDAR branch and trunk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from torch import Tensor

from perception.config import Config
from perception.errors import InputError
from perception.mmdet3d.checkpoint import ConfigSection
from perception.parts import Grid, Model, Trunk
from perception.sensors.lidar.config import Lidar
from perception.tasks.detection.config import DetectionHead

POINT_WEIGHTS = "lidar.layers.0.points.layer.weight"  # our weights of the point features


def trunk_config(backbone: ConfigSection, neck: ConfigSection) -> Trunk:
    """The configuration of our trunk, on a BEV feature map of stride 1."""
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
    """
    neck.require("type", "SECONDFPN")
    neck.require("conv_cfg", {"type": "Conv2d", "bias": False}, default=None)
    neck.require("upsample_cfg", {"type": "deconv", "bias": False}, default=None)
    neck.require("in_channels", channels)
    up_channels = neck["out_channels"]
    output_strides = {stride / up for stride, up in zip(strides, neck["upsample_strides"], strict=True)}
    if len(output_strides) != 1 or len(set(up_channels)) != 1:
        raise neck.unsupported_error("its stages must come out with the same channels, on the same grid")
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


def voxelisation_of(model: ConfigSection) -> ConfigSection:
    """The voxelisation, where mmdet3d has it since version 1.1."""
    preprocessor = model.part("data_preprocessor")
    preprocessor.require("voxel_type", "hard", default="hard")
    return preprocessor.part("voxel_layer")


def grid_config(voxels: ConfigSection) -> Grid:
    """The grid of the pillars, in the LiDAR's frame."""
    low, high = voxels["point_cloud_range"][:3], voxels["point_cloud_range"][3:]
    size = voxels["voxel_size"]
    if size[0] != size[1] or abs(size[2] - (high[2] - low[2])) > 1e-6:
        raise voxels.unsupported_error(f"voxels of {size} are no pillars on square cells")
    x, y, z = zip(low, high, strict=True)
    return Grid(x=x, y=y, z=z, cell=size[0], reference="lidar")


def detector_config(
    config: ConfigSection, voxels: ConfigSection, lidar: Lidar, trunk: Trunk, head: DetectionHead
) -> Config:
    """The configuration of a LiDAR-only detector of these parts."""
    model = Model(lidar=lidar, fusion=False, fused_channels=lidar.channels, trunk=trunk)
    return Config(name=config.path.stem, grid=grid_config(voxels), model=model, tasks={"detection": head})


def sweep_step(config: ConfigSection) -> ConfigSection | None:
    """The step of the test pipeline that adds the points of earlier sweeps, with their dt; None without one."""
    if not isinstance(config.get("test_pipeline", None), list | tuple):
        raise InputError(f"{config.path}: no `test_pipeline` here, which says how many sweeps the model sees")
    for step in config["test_pipeline"]:
        if isinstance(step, dict) and step.get("type") == "LoadPointsFromMultiSweeps":
            return ConfigSection(step, config.path, "test_pipeline")
    return None


def lidar_config(
    config: ConfigSection, voxels: ConfigSection, encoder_type: str, encoder_settings: Mapping[str, tuple[Any, Any]]
) -> Lidar:
    """The configuration of our pillar encoder.

    Args:
        encoder_settings: for each setting of the encoder the supported value and mmdet3d's default.
    """
    model, sweeps = config.part("model"), sweep_step(config)
    encoder = model.part("pts_voxel_encoder")
    encoder.require("type", encoder_type)
    encoder.require_all(encoder_settings)
    for key in ("voxel_size", "point_cloud_range"):
        encoder.require(key, voxels[key], default=())
    model.part("pts_middle_encoder").require("type", "PointPillarsScatter")
    *hidden, channels = encoder["feat_channels"]
    max_voxels = voxels["max_voxels"]
    return Lidar(
        max_pillars=max_voxels if isinstance(max_voxels, int) else max_voxels[1],  # (training, testing)
        overflow="first",
        points_per_pillar=voxels["max_num_points"],
        encoder="padded",
        hidden=hidden,
        channels=channels,
        sweeps=sweeps.get("sweeps_num", 10) if sweeps else 0,
    )
