"""How mmdet3d's detectors make pillars of points: settings that become ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from perception.config import Grid, Lidar
from perception.errors import InputError
from perception.mmdet3d.config import Settings

FIRST = "lidar.layers.0.points.layer.weight"  # our weights of a point's description


def grid(model: Settings) -> Grid:
    """Of the pillars, in the LiDAR's frame."""
    voxels = model.part("data_preprocessor").part("voxel_layer")
    low, high = voxels["point_cloud_range"][:3], voxels["point_cloud_range"][3:]
    size = voxels["voxel_size"]
    if size[0] != size[1] or abs(size[2] - (high[2] - low[2])) > 1e-6:
        raise voxels.refused(f"voxels of {size} are no pillars on square cells")
    x, y, z = zip(low, high, strict=True)
    return Grid(x=x, y=y, z=z, cell=size[0], reference="lidar")


def sweep_loader(config: Settings) -> Settings | None:
    """The step of testing that gives points of the sweeps before the keyframe, and their dt."""
    if not isinstance(config.get("test_pipeline", None), list | tuple):
        raise InputError(f"{config.path}: no `test_pipeline` here, which says how many sweeps the model sees")
    for step in config["test_pipeline"]:
        if isinstance(step, dict) and step.get("type") == "LoadPointsFromMultiSweeps":
            return Settings(step, config.path, "test_pipeline")
    return None


def lidar(config: Settings, encoder_type: str, seen: Mapping[str, tuple[Any, Any]]) -> Lidar:
    """How points become pillars, and those a map.

    Args:
        config: the whole configuration.
        encoder_type: of mmdet3d.
        seen: of the encoder the one value of each setting that is served, and mmdet3d's default.
    """
    model, loader = config.part("model"), sweep_loader(config)
    preprocessor, encoder = model.part("data_preprocessor"), model.part("pts_voxel_encoder")
    voxels = preprocessor.part("voxel_layer")
    preprocessor.require("voxel_type", "hard", default="hard")
    encoder.require("type", encoder_type)
    for key, (served, default) in seen.items():
        encoder.require(key, served, default=default)
    for key in ("voxel_size", "point_cloud_range"):
        encoder.require(key, voxels[key], default=())
    model.part("pts_middle_encoder").require("type", "PointPillarsScatter")
    *hidden, channels = encoder["feat_channels"]
    most = voxels["max_voxels"]
    return Lidar(
        max_pillars=most if isinstance(most, int) else most[1],  # those of testing
        overflow="first",
        points_per_pillar=voxels["max_num_points"],
        encoder="padded",
        hidden=hidden,
        channels=channels,
        sweeps=loader.get("sweeps_num", 10) if loader else 0,
    )
