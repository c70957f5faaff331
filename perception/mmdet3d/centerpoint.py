"""Converts mmdet3d's CenterPoint on pillars (Yin et al., 2021) to our network, with the same outputs.

The weights absorb the differences: sizes are length, width, height in mmdet3d and width, length, height in ours;
positions are in metres in mmdet3d and scaled in our pillar encoder; the epsilons of normalisations differ. Offsets,
heights (of box centres), sine and cosine of the yaw and velocities agree, in the LiDAR's frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from perception.config import Config
from perception.datasets.infos import CLASSES
from perception.mmdet3d.checkpoint import ConfigSection, convert_norm_epsilons, rename_state
from perception.mmdet3d.second import (
    POINT_WEIGHTS,
    detector_config,
    lidar_config,
    transpose_unit_stride_deblocks,
    trunk_config,
    trunk_names,
    voxelisation_of,
)
from perception.model import PerceptionModel
from perception.parts import Trunk
from perception.sensors.lidar.config import Lidar
from perception.tasks.detection.config import DetectionHead, IouScore, Suppression, map_name
from perception.tasks.detection.targets import REGRESSION

# Settings of PillarFeatureNet: supported value, mmdet3d's default.
ENCODER_SETTINGS = {
    "in_channels": (5, 4),
    "with_distance": (False, False),
    "with_cluster_center": (True, True),
    "with_voxel_center": (True, True),
    "legacy": (False, True),
    "mode": ("max", "max"),
}
NAMES = {  # our branch of the head -> mmdet3d's
    "heatmap": "heatmap",
    "offset": "reg",
    "height": "height",
    "size": "dim",
    "heading": "rot",
    "velocity": "vel",
}


def convert(config: ConfigSection, checkpoint: Path, state: Mapping[str, Tensor]) -> tuple[Config, PerceptionModel]:
    """Our configuration and network."""
    converted = configuration(config)
    head, names = head_of(converted), trunk_names(converted.model.trunk)
    network, weights = renamed(converted, config.part("model"), state, names | module_names(head, NAMES), checkpoint)
    for name in last_layers(head, "size"):
        weights[name] = weights[name][[1, 0, 2]]
    network.load_state_dict(weights)
    return converted, network.eval()


def head_of(config: Config) -> DetectionHead:
    head = config.tasks["detection"]
    assert isinstance(head, DetectionHead)
    return head


def renamed(
    config: Config, model: ConfigSection, state: Mapping[str, Tensor], names: Mapping[str, str], checkpoint: Path
) -> tuple[PerceptionModel, dict[str, Tensor]]:
    """Our network, and the checkpoint's weights under our names, but for the order of the head's outputs."""
    network = PerceptionModel(config)
    weights = rename_state(state, network.state_dict(), names, checkpoint)
    weights[POINT_WEIGHTS] = weights[POINT_WEIGHTS] / network.get_buffer("lidar.scale")
    transpose_unit_stride_deblocks(weights, model.part("pts_neck"))
    head = model.part("pts_bbox_head")
    parts = {
        "lidar.": (model.part("pts_voxel_encoder"), 1e-3),
        "trunk.stages.": (model.part("pts_backbone"), 1e-3),
        "trunk.lifts.": (model.part("pts_neck"), 1e-3),
        "heads.detection.shared.": (head, 1e-5),
        "heads.detection.branches.": (head.part("separate_head"), 1e-5),
    }
    convert_norm_epsilons(weights, parts)
    return network, weights


def configuration(config: ConfigSection) -> Config:
    model = config.part("model")
    voxels, head = voxelisation_of(model), head_config(model, "CenterHead", NAMES)
    lidar = lidar_config(config, voxels, "PillarFeatureNet", ENCODER_SETTINGS)
    trunk = trunk_config(model.part("pts_backbone"), model.part("pts_neck"))
    return pillar_detector(config, voxels, lidar, trunk, head)


def pillar_detector(
    config: ConfigSection, voxels: ConfigSection, lidar: Lidar, trunk: Trunk, head: DetectionHead
) -> Config:
    if lidar.hidden:
        encoder = config.part("model").part("pts_voxel_encoder")
        raise encoder.unsupported_error(f"{len(lidar.hidden) + 1} layers, ours has one")
    return detector_config(config, voxels, lidar, trunk, head)


def head_config(model: ConfigSection, kind: str, names: Mapping[str, str]) -> DetectionHead:
    """The configuration of our head."""
    head, testing = model.part("pts_bbox_head"), model.part("test_cfg").part("pts")
    separate, coder = head.part("separate_head"), head.part("bbox_coder")
    head.require("type", kind)
    head.require("norm_bbox", True, default=True)
    head.require("num_heatmap_convs", 2, default=2)
    widths = REGRESSION | {"iou": 1}
    head.require("common_heads", {names[ours]: (n, 2) for ours, n in widths.items() if ours in names})
    head.require("bias", "auto", default="auto")
    separate.require("type", "SeparateHead", "mmdet.SeparateHead")
    separate.require("final_kernel", 3, default=1)
    channels = head.get("share_conv_channel", 64)
    separate.require("head_conv", channels, default=64)
    groups = tuple(tuple(task["class_names"]) for task in head["tasks"])
    if tuple(name for group in groups for name in group) != CLASSES:
        raise head.unsupported_error(f"the classes of its tasks must be, in this order, {', '.join(CLASSES)}")
    return DetectionHead(
        channels=channels,
        groups=groups,
        top_k=coder["max_num"],
        output_kernel=3,
        attributes="speed",
        suppression=_suppression(coder, testing, with_iou="iou" in names),
        iou=IouScore(beta=testing.get("iou_score_beta", 0.5), threshold=coder["score_threshold"])
        if "iou" in names
        else None,
    )


def _suppression(coder: ConfigSection, testing: ConfigSection, with_iou: bool) -> Suppression:
    testing.require("nms_type", "circle", "rotate")
    limits, circle = coder["post_center_range"], testing["nms_type"] == "circle"
    if not circle:  # the boxes are filtered by range and score a second time
        testing.require("post_center_limit_range", limits)
        testing.require("score_threshold", coder["score_threshold"])
        if testing["pre_max_size"] < coder["max_num"]:
            raise testing.unsupported_error(f"pre_max_size must be at least bbox_coder.max_num, {coder['max_num']}")
    return Suppression(
        # The first threshold is the heatmap's, before the IoU enters the score; rotated NMS has one of its own.
        threshold=0.0 if with_iou and circle else coder["score_threshold"],
        low=limits[:3],
        high=limits[3:],
        kind="circle" if circle else "rotated",
        # mmdet3d's min_radius is a squared distance.
        radii=tuple(radius**0.5 for radius in testing["min_radius"]) if circle else (),
        overlap=testing.get("nms_thr", 0.2),
        most=testing["post_max_size"],
    )


def module_names(head: DetectionHead, names: Mapping[str, str]) -> dict[str, str]:
    """Our module name -> mmdet3d's, for encoder and head; `names` are those of the head's branches."""
    modules = {
        "lidar.layers.0.points.layer": "pts_voxel_encoder.pfn_layers.0.linear",
        "lidar.layers.0.norm.layer": "pts_voxel_encoder.pfn_layers.0.norm",
        "heads.detection.shared.conv.layer": "pts_bbox_head.shared_conv.conv",
        "heads.detection.shared.norm.layer": "pts_bbox_head.shared_conv.bn",
    }
    for i in range(len(head.groups)):
        for ours, name in names.items():
            branch = f"heads.detection.branches.{map_name(head, ours, i)}"
            task = f"pts_bbox_head.task_heads.{i}.{name}"
            modules |= {
                f"{branch}.0.conv.layer": f"{task}.0.conv",
                f"{branch}.0.norm.layer": f"{task}.0.bn",
                f"{branch}.1.layer": f"{task}.1",
            }
    return modules


def last_layers(head: DetectionHead, branch: str) -> list[str]:
    places = [map_name(head, branch, i) for i in range(len(head.groups))]
    return [f"heads.detection.branches.{place}.1.layer.{leaf}" for place in places for leaf in ("weight", "bias")]
