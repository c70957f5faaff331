"""CenterPoint of mmdet3d on pillars (Yin et al., 2021) becomes our network, with the same outputs.

What differs is settled in the weights: their sizes are length, width, height, ours width, length, height; they see
positions in metres, our pillar encoder sees them scaled; their normalisations have other epsilons. Offsets, heights
(of the middle of a box), sine and cosine of the yaw and velocities mean the same, in the LiDAR's own frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from perception.config import Config, Model, Trunk
from perception.frame import CLASSES
from perception.mmdet3d.checkpoint import same_norms, take
from perception.mmdet3d.config import Settings
from perception.mmdet3d.pillars import FIRST, grid, lidar
from perception.mmdet3d.second import same_lifts, trunk, trunk_modules
from perception.model import PerceptionModel
from perception.tasks.detection.center_head import map_name
from perception.tasks.detection.config import DetectionHead, Suppression

# Of PillarFeatureNet: what is served, and mmdet3d's default.
SEEN = {
    "in_channels": (5, 4),
    "with_distance": (False, False),
    "with_cluster_center": (True, True),
    "with_voxel_center": (True, True),
    "legacy": (False, True),
    "mode": ("max", "max"),
}
NAMES = {
    "heatmap": "heatmap",
    "offset": "reg",
    "height": "height",
    "size": "dim",
    "heading": "rot",
    "velocity": "vel",
}


def convert(config: Settings, checkpoint: Path, state: Mapping[str, Tensor]) -> tuple[Config, PerceptionModel]:
    """Our configuration and network.

    Args:
        config: the whole configuration.
        checkpoint: path, for messages.
        state: of the checkpoint.

    Raises:
        InputError: settings without a counterpart here, or keys that are missing or unexpected.
    """
    theirs = config.part("model")
    encoder = theirs.part("pts_voxel_encoder")
    if len(encoder["feat_channels"]) != 1:
        raise encoder.refused(f"{len(encoder['feat_channels'])} layers, ours has one")
    head = _head(theirs)
    ours = Config(
        name=config.path.stem,
        grid=grid(theirs),
        model=Model(
            lidar=lidar(config, "PillarFeatureNet", SEEN),
            fusion=False,
            fused_channels=encoder["feat_channels"][-1],
            trunk=trunk(theirs.part("pts_backbone"), theirs.part("pts_neck")),
        ),
        tasks={"detection": head},
    )
    network = PerceptionModel(ours)
    weights = take(state, network.state_dict(), _modules(ours.model.trunk, head), checkpoint)
    weights[FIRST] = weights[FIRST] / network.lidar.scale
    same_lifts(weights, theirs.part("pts_neck"))
    bbox_head = theirs.part("pts_bbox_head")
    same_norms(
        weights,
        {
            "lidar.": (theirs.part("pts_voxel_encoder"), 1e-3),
            "trunk.stages.": (theirs.part("pts_backbone"), 1e-3),
            "trunk.lifts.": (theirs.part("pts_neck"), 1e-3),
            "heads.detection.shared.": (bbox_head, 1e-5),
            "heads.detection.branches.": (bbox_head.part("separate_head"), 1e-5),
        },
    )
    for i in range(len(head.groups)):
        for leaf in ("weight", "bias"):
            name = f"heads.detection.branches.{map_name(head, 'size', i)}.1.layer.{leaf}"
            weights[name] = weights[name][[1, 0, 2]]
    network.load_state_dict(weights)
    return ours, network.eval()


def _head(model: Settings) -> DetectionHead:
    head, testing = model.part("pts_bbox_head"), model.part("test_cfg").part("pts")
    separate, coder = head.part("separate_head"), head.part("bbox_coder")
    head.require("type", "CenterHead")
    head.require("norm_bbox", True, default=True)
    head.require("num_heatmap_convs", 2, default=2)
    head.require("common_heads", {"reg": (2, 2), "height": (1, 2), "dim": (3, 2), "rot": (2, 2), "vel": (2, 2)})
    head.require("bias", "auto", default="auto")
    separate.require("type", "SeparateHead", "mmdet.SeparateHead")
    separate.require("final_kernel", 3, default=1)
    channels = head.get("share_conv_channel", 64)
    separate.require("head_conv", channels, default=64)
    groups = tuple(tuple(task["class_names"]) for task in head["tasks"])
    if tuple(name for group in groups for name in group) != CLASSES:
        raise head.refused(f"the classes of its tasks must be, in this order, {', '.join(CLASSES)}")
    return DetectionHead(
        channels=channels,
        groups=groups,
        top_k=coder["max_num"],
        output_kernel=3,
        attributes="speed",
        suppression=_suppression(coder, testing),
    )


def _suppression(coder: Settings, testing: Settings) -> Suppression:
    testing.require("nms_type", "circle", "rotate")
    limits, circle = coder["post_center_range"], testing["nms_type"] == "circle"
    if not circle:  # there they are cut a second time
        testing.require("post_center_limit_range", limits)
        testing.require("score_threshold", coder["score_threshold"])
        if testing["pre_max_size"] < coder["max_num"]:
            raise testing.refused(f"pre_max_size must be at least bbox_coder.max_num, {coder['max_num']}")
    return Suppression(
        threshold=coder["score_threshold"],
        low=limits[:3],
        high=limits[3:],
        kind="circle" if circle else "rotated",
        radii=tuple(radius**0.5 for radius in testing["min_radius"])
        if circle
        else (),  # theirs are squares of distances
        overlap=testing.get("nms_thr", 0.2),
        most=testing["post_max_size"],
    )


def _modules(trunk: Trunk, head: DetectionHead) -> dict[str, str]:
    """Our module -> theirs."""
    modules = {
        "lidar.layers.0.points.layer": "pts_voxel_encoder.pfn_layers.0.linear",
        "lidar.layers.0.norm.layer": "pts_voxel_encoder.pfn_layers.0.norm",
        "heads.detection.shared.conv.layer": "pts_bbox_head.shared_conv.conv",
        "heads.detection.shared.norm.layer": "pts_bbox_head.shared_conv.bn",
        **trunk_modules(trunk),
    }
    for i in range(len(head.groups)):
        for ours, name in NAMES.items():
            branch = f"heads.detection.branches.{map_name(head, ours, i)}"
            task = f"pts_bbox_head.task_heads.{i}.{name}"
            modules |= {
                f"{branch}.0.conv.layer": f"{task}.0.conv",
                f"{branch}.0.norm.layer": f"{task}.0.bn",
                f"{branch}.1.layer": f"{task}.1",
            }
    return modules
