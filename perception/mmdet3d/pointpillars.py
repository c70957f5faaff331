"""PointPillars of mmdet3d for nuScenes (Lang et al., 2019) becomes our network, with the same outputs.

HardVFE, SECOND with FPN or SECONDFPN, and Anchor3DHead. What differs is settled in the weights: the order of the
classes, sizes as length, width, height where ours are width, length, height, points without intensity, and positions
in metres where our encoder sees them scaled. A box's z is its underside in theirs, its middle in ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from perception.config import Config, Lidar, Model, Trunk
from perception.frame import CLASSES
from perception.mmdet3d.checkpoint import same_norms, take
from perception.mmdet3d.config import Settings
from perception.mmdet3d.pillars import FIRST, grid, lidar, sweep_loader
from perception.mmdet3d.second import same_lifts, trunk, trunk_modules
from perception.model import PerceptionModel
from perception.tasks.detection.config import Anchor, AnchorHead, DetectionHead, Suppression

# Of HardVFE: what is served, and mmdet3d's default.
SEEN = {
    "with_distance": (False, False),
    "with_cluster_center": (True, False),
    "with_voxel_center": (True, False),
    "fusion_layer": (None, None),
    "return_point_feats": (False, False),
    "mode": ("max", "max"),
}
_HEAD = {"classes": "conv_cls", "boxes": "conv_reg", "directions": "conv_dir_cls"}


def convert(config: Settings, checkpoint: Path, state: Mapping[str, Tensor]) -> tuple[Config, PerceptionModel]:
    """Our configuration and network; arguments and errors as of `centerpoint.convert`."""
    theirs = config.part("model")
    for part in ("img_backbone", "pts_fusion_layer"):
        theirs.require(part, None, default=None)
    pyramidal = theirs.part("pts_neck").get("type", "") == "mmdet.FPN"
    backbone, neck = theirs.part("pts_backbone"), theirs.part("pts_neck")
    seen = lidar(config, "HardVFE", SEEN)
    ours = Config(
        name=config.path.stem,
        grid=grid(theirs),
        model=Model(
            lidar=seen,
            fusion=False,
            fused_channels=seen.channels,
            trunk=_pyramid(backbone, neck) if pyramidal else trunk(backbone, neck),
        ),
        tasks={"detection": DetectionHead(anchors=_head(theirs))},
    )
    network = PerceptionModel(ours)
    columns = _point_columns(config)
    expected = _expected(network, seen, columns)
    if not pyramidal:
        same_lifts(expected, neck)
    weights = take(state, expected, _modules(ours), checkpoint)
    _describe_points(weights, columns, network)
    _split_layers(weights, seen)
    if not pyramidal:
        same_lifts(weights, neck)
    _order_outputs(weights, _classes(config))
    same_norms(
        weights,
        {
            "lidar.": (theirs.part("pts_voxel_encoder"), 1e-3),
            "trunk.stages.": (backbone, 1e-3),
            "trunk.": (neck, 1e-3),
        },
    )
    network.load_state_dict(weights)
    return ours, network.eval()


def _point_columns(config: Settings) -> list[int]:
    """Which of x, y, z, intensity and dt the network sees of a point."""
    loader, encoder = sweep_loader(config), config.part("model").part("pts_voxel_encoder")
    if loader is None:
        raise encoder.refused("the `test_pipeline` has no LoadPointsFromMultiSweeps, which gives points their dt")
    columns = list(loader.get("use_dim", (0, 1, 2, 4)))  # mmdet3d's default
    encoder.require("in_channels", len(columns), default=4)
    if columns[:3] != [0, 1, 2] or not {*columns} <= {*range(5)}:
        raise encoder.refused(f"its points have the columns {columns} of x, y, z, intensity, dt")
    return columns


def _pyramid(backbone: Settings, neck: Settings) -> Trunk:
    """The configuration of our trunk with a map for each stage."""
    backbone.require("type", "SECOND")
    backbone.require("conv_cfg", {"type": "Conv2d", "bias": False}, default=None)
    stages = tuple(backbone["out_channels"])
    neck.require("in_channels", stages)
    neck.require("num_outs", len(stages))
    for key, served in (
        ("start_level", 0),
        ("end_level", -1),
        ("add_extra_convs", False),
        ("no_norm_on_lateral", False),
        ("conv_cfg", None),
        ("upsample_cfg", {"mode": "nearest"}),
    ):
        neck.require(key, served, default=served)
    neck.require("act_cfg", {"type": "ReLU"})
    return Trunk(
        channels=stages,
        blocks=tuple(backbone["layer_nums"]),
        strides=tuple(backbone["layer_strides"]),
        up_channels=neck["out_channels"],
        stride=backbone["layer_strides"][0],
        pyramid=True,
    )


def _head(model: Settings) -> AnchorHead:
    head, testing = model.part("pts_bbox_head"), model.part("test_cfg").part("pts")
    anchors, coder = head.part("anchor_generator"), head.part("bbox_coder")
    head.require("type", "Anchor3DHead")
    head.require("num_classes", len(CLASSES))
    head.require("use_direction_classifier", True, default=True)
    head.part("loss_cls").require("use_sigmoid", True)
    coder.require("type", "DeltaXYZWLHRBBoxCoder")
    coder.require("code_size", 9)
    anchors.require("type", "AlignedAnchor3DRangeGenerator")
    anchors.require("align_corner", False, default=False)
    anchors.require("size_per_range", True, default=True)
    anchors.require("custom_values", (0, 0))
    testing.require("use_rotate_nms", True)
    sizes, ranges = anchors["sizes"], anchors["ranges"]
    ranges = ranges * len(sizes) if len(ranges) == 1 else ranges
    found = []
    for (length, width, height), (x0, y0, z0, x1, y1, z1) in zip(sizes, ranges, strict=True):
        found.append(Anchor(size=(width, length, height), bottom=(z0 + z1) / 2, x=(x0, x1), y=(y0, y1)))
    return AnchorHead(
        anchors=tuple(found),
        rotations=anchors["rotations"],
        scales=anchors.get("scales", [1]),
        direction_offset=head["dir_offset"],
        direction_limit_offset=head.get("dir_limit_offset", 0),
        candidates=testing["nms_pre"],
        suppression=Suppression(
            threshold=testing["score_thr"],
            kind="rotated",
            overlap=testing["nms_thr"],
            most=None,
            total=testing["max_num"],
        ),
    )


def _modules(config: Config) -> dict[str, str]:
    """Our module -> theirs."""
    assert config.model.lidar is not None
    modules = {f"heads.detection.branches.{ours}.layer": f"pts_bbox_head.{name}" for ours, name in _HEAD.items()}
    for i in range(len(config.model.lidar.hidden) + 1):
        modules[f"lidar.layers.{i}.points.layer"] = f"pts_voxel_encoder.vfe_layers.{i}.linear"
        modules[f"lidar.layers.{i}.norm.layer"] = f"pts_voxel_encoder.vfe_layers.{i}.norm"
    modules |= trunk_modules(config.model.trunk)
    if config.model.trunk.pyramid:
        for i in range(len(config.model.trunk.channels)):
            for ours, theirs in (("laterals", "lateral_convs"), ("smooths", "fpn_convs")):
                modules[f"trunk.{ours}.{i}.conv.layer"] = f"pts_neck.{theirs}.{i}.conv"
                modules[f"trunk.{ours}.{i}.norm.layer"] = f"pts_neck.{theirs}.{i}.bn"
    return modules


def _expected(network: PerceptionModel, lidar: Lidar, columns: list[int]) -> dict[str, Tensor]:
    """Our `state_dict` with the encoder's layers as they are in theirs: without the numbers that their points lack, and
    with one matrix for a point and its pillar."""
    expected = dict(network.state_dict())
    expected[FIRST] = expected[FIRST][:, : len(columns) + 6]
    for i in range(1, len(lidar.hidden) + 1):
        names = [f"lidar.layers.{i}.{part}.layer.weight" for part in ("points", "pillar")]
        expected[names[0]] = torch.cat([expected[names[0]], expected.pop(names[1])], dim=1)
    return expected


def _describe_points(weights: dict[str, Tensor], columns: list[int], network: PerceptionModel) -> None:
    """Weights for our description of a point: what theirs does not see has none, and all are for scaled numbers."""
    theirs = weights[FIRST]
    ours = theirs.new_zeros(len(theirs), len(network.lidar.scale))
    ours[:, [*columns, *range(5, 11)]] = theirs
    weights[FIRST] = ours / network.lidar.scale


def _split_layers(weights: dict[str, Tensor], lidar: Lidar) -> None:
    """Part the matrices of the later layers into that for points and that for pillars."""
    for i, width in enumerate(lidar.hidden, 1):
        own, shared = (f"lidar.layers.{i}.{part}.layer.weight" for part in ("points", "pillar"))
        weights[own], weights[shared] = weights[own].split(width, dim=1)


def _classes(config: Settings) -> tuple[str, ...]:
    """The names of the classes in the order of the network's outputs."""
    names = config.get("class_names", ())
    if sorted(names) != sorted(CLASSES):
        raise config.part("model").refused(f"`class_names` must be, in any order, {', '.join(CLASSES)}")
    return tuple(names)


def _order_outputs(weights: dict[str, Tensor], classes: tuple[str, ...]) -> None:
    """For each anchor the classes as in CLASSES, and width before length."""
    order = {"classes": [classes.index(name) for name in CLASSES], "boxes": [0, 1, 2, 4, 3, 5, 6, 7, 8]}
    for branch, index in order.items():
        for leaf in ("weight", "bias"):
            name = f"heads.detection.branches.{branch}.layer.{leaf}"
            weights[name] = weights[name].unflatten(0, (-1, len(index)))[:, index].flatten(0, 1)
