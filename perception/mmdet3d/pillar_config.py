"""Converts the pillar settings of mmdet3d's detectors to ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from perception.config import Grid, Lidar
from perception.errors import InputError
from perception.mmdet3d.flat_config import ConfigSection

POINT_WEIGHTS = "lidar.layers.0.points.layer.weight"  # our weights of the point features


def preprocessed_voxels(model: ConfigSection) -> ConfigSection:
    """The voxelisation, where mmdet3d has it since version 1.1."""
    preprocessor = model.part("data_preprocessor")
    preprocessor.require("voxel_type", "hard", default="hard")
    return preprocessor.part("voxel_layer")


def grid_config(voxels: ConfigSection) -> Grid:
    """The grid of the pillars, in the LiDAR's frame.

    Args:
        voxels: mmdet3d's voxelisation.
    """
    low, high = voxels["point_cloud_range"][:3], voxels["point_cloud_range"][3:]
    size = voxels["voxel_size"]
    if size[0] != size[1] or abs(size[2] - (high[2] - low[2])) > 1e-6:
        raise voxels.unsupported(f"voxels of {size} are no pillars on square cells")
    x, y, z = zip(low, high, strict=True)
    return Grid(x=x, y=y, z=z, cell=size[0], reference="lidar")


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
        config: the whole configuration.
        voxels: mmdet3d's voxelisation.
        encoder_type: mmdet3d's class of the encoder.
        encoder_settings: for each setting of the encoder the supported value and mmdet3d's default.
    """
    model, sweeps = config.part("model"), sweep_step(config)
    encoder = model.part("pts_voxel_encoder")
    encoder.require("type", encoder_type)
    for key, (supported, default) in encoder_settings.items():
        encoder.require(key, supported, default=default)
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
