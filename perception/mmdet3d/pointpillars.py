"""Converts mmdet3d's PointPillars for nuScenes (Lang et al., 2019) to our network, with the same outputs.

Supported are HardVFE, SECOND with FPN or SECONDFPN, and Anchor3DHead. The weights absorb the differences: the order of
classes; sizes, which are length, width, height in mmdet3d and width, length, height in ours; points without intensity;
positions, which are in metres in mmdet3d and scaled in our encoder. The z of a box is its bottom in mmdet3d and its
centre in ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from perception.config import Config
from perception.datasets.infos import CLASSES
from perception.mmdet3d.checkpoint import ConfigSection, convert_norm_epsilons, rename_state
from perception.mmdet3d.second import (
    POINT_WEIGHTS,
    detector_config,
    lidar_config,
    sweep_step,
    transpose_unit_stride_deblocks,
    trunk_config,
    trunk_names,
    voxelisation_of,
)
from perception.model import PerceptionModel
from perception.parts import Trunk
from perception.sensors.lidar.config import Lidar
from perception.tasks.detection.config import Anchor, AnchorHead, DetectionHead, Suppression

# Settings of HardVFE: supported value, mmdet3d's default.
ENCODER_SETTINGS = {
    "with_distance": (False, False),
    "with_cluster_center": (True, False),
    "with_voxel_center": (True, False),
    "fusion_layer": (None, None),
    "return_point_feats": (False, False),
    "mode": ("max", "max"),
}
NECK_SETTINGS = {  # of FPN: supported values, which are mmdet3d's defaults
    "start_level": 0, "end_level": -1, "add_extra_convs": False, "no_norm_on_lateral": False, "conv_cfg": None,
    "upsample_cfg": {"mode": "nearest"},
}  # fmt: skip
_BRANCHES = {"classes": "conv_cls", "boxes": "conv_reg", "directions": "conv_dir_cls"}


def convert(config: ConfigSection, checkpoint: Path, state: Mapping[str, Tensor]) -> tuple[Config, PerceptionModel]:
    """Our configuration and network; arguments and errors as in `centerpoint.convert`."""
    model = config.part("model")
    for part in ("img_backbone", "pts_fusion_layer"):
        model.require(part, None, default=None)
    pyramidal = model.part("pts_neck").get("type", "") == "mmdet.FPN"
    backbone, neck = model.part("pts_backbone"), model.part("pts_neck")
    voxels = voxelisation_of(model)
    encoder = lidar_config(config, voxels, "HardVFE", ENCODER_SETTINGS)
    trunk = _pyramid_config(backbone, neck) if pyramidal else trunk_config(backbone, neck)
    converted = detector_config(config, voxels, encoder, trunk, DetectionHead(anchors=_head(model)))
    network = PerceptionModel(converted)
    columns = _point_columns(config)
    expected = _expected_tensors(network, encoder, columns)
    if not pyramidal:
        transpose_unit_stride_deblocks(expected, neck)
    weights = rename_state(state, expected, _modules(converted), checkpoint)
    # Zeros for point features that mmdet3d's network does not have.
    points = torch.zeros(len(weights[POINT_WEIGHTS]), len(network.get_buffer("lidar.scale")))
    points[:, [*columns, *range(5, 11)]] = weights[POINT_WEIGHTS]
    weights[POINT_WEIGHTS] = points / network.get_buffer("lidar.scale")
    for i, width in enumerate(encoder.hidden, 1):
        of_points, of_pillar = _split_names(i)
        weights[of_points], weights[of_pillar] = weights[of_points].split(width, dim=1)
    if not pyramidal:
        transpose_unit_stride_deblocks(weights, neck)
    _reorder_outputs(weights, _classes(config))
    parts = {"lidar.": model.part("pts_voxel_encoder"), "trunk.stages.": backbone, "trunk.": neck}
    convert_norm_epsilons(weights, {start: (part, 1e-3) for start, part in parts.items()})
    network.load_state_dict(weights)
    return converted, network.eval()


def _point_columns(config: ConfigSection) -> list[int]:
    """Indices into x, y, z, intensity, dt of the network's inputs per point."""
    sweeps, encoder = sweep_step(config), config.part("model").part("pts_voxel_encoder")
    if sweeps is None:
        raise encoder.unsupported_error("`test_pipeline` has no LoadPointsFromMultiSweeps, which gives points their dt")
    columns = list(sweeps.get("use_dim", (0, 1, 2, 4)))  # mmdet3d's default
    encoder.require("in_channels", len(columns), default=4)
    if columns[:3] != [0, 1, 2] or not {*columns} <= {*range(5)}:
        raise encoder.unsupported_error(f"its points have the columns {columns} of x, y, z, intensity, dt")
    return columns


def _pyramid_config(backbone: ConfigSection, neck: ConfigSection) -> Trunk:
    backbone.require("type", "SECOND")
    backbone.require("conv_cfg", {"type": "Conv2d", "bias": False}, default=None)
    stages = tuple(backbone["out_channels"])
    neck.require("in_channels", stages)
    neck.require("num_outs", len(stages))
    for key, supported in NECK_SETTINGS.items():
        neck.require(key, supported, default=supported)
    neck.require("act_cfg", {"type": "ReLU"})
    return Trunk(
        channels=stages,
        blocks=tuple(backbone["layer_nums"]),
        strides=tuple(backbone["layer_strides"]),
        up_channels=neck["out_channels"],
        stride=backbone["layer_strides"][0],
        pyramid=True,
    )


def _head(model: ConfigSection) -> AnchorHead:
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
    return AnchorHead(
        anchors=tuple(
            Anchor(size=(width, length, height), bottom=(z0 + z1) / 2, x=(x0, x1), y=(y0, y1))
            for (length, width, height), (x0, y0, z0, x1, y1, z1) in zip(sizes, ranges, strict=True)
        ),
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
    assert config.model.lidar is not None
    modules = {f"heads.detection.branches.{ours}.layer": f"pts_bbox_head.{name}" for ours, name in _BRANCHES.items()}
    for i in range(len(config.model.lidar.hidden) + 1):
        modules[f"lidar.layers.{i}.points.layer"] = f"pts_voxel_encoder.vfe_layers.{i}.linear"
        modules[f"lidar.layers.{i}.norm.layer"] = f"pts_voxel_encoder.vfe_layers.{i}.norm"
    modules |= trunk_names(config.model.trunk)
    if config.model.trunk.pyramid:
        for i in range(len(config.model.trunk.channels)):
            for ours, theirs in (("laterals", "lateral_convs"), ("smooths", "fpn_convs")):
                modules[f"trunk.{ours}.{i}.conv.layer"] = f"pts_neck.{theirs}.{i}.conv"
                modules[f"trunk.{ours}.{i}.norm.layer"] = f"pts_neck.{theirs}.{i}.bn"
    return modules


def _expected_tensors(network: PerceptionModel, lidar: Lidar, columns: list[int]) -> dict[str, Tensor]:
    """Our `state_dict` with the encoder's layers in mmdet3d's shapes: no absent point features, one matrix a layer."""
    expected = dict(network.state_dict())
    expected[POINT_WEIGHTS] = expected[POINT_WEIGHTS][:, : len(columns) + 6]
    for i in range(1, len(lidar.hidden) + 1):
        of_points, of_pillar = _split_names(i)
        expected[of_points] = torch.cat([expected[of_points], expected.pop(of_pillar)], dim=1)
    return expected


def _split_names(layer: int) -> tuple[str, str]:
    """Names of our weights of point and pillar features in a later layer."""
    return f"lidar.layers.{layer}.points.layer.weight", f"lidar.layers.{layer}.pillar.layer.weight"


def _classes(config: ConfigSection) -> tuple[str, ...]:
    names = config.get("class_names", ())
    if sorted(names) != sorted(CLASSES):
        raise config.part("model").unsupported_error(f"`class_names` must be, in any order, {', '.join(CLASSES)}")
    return tuple(names)


def _reorder_outputs(weights: dict[str, Tensor], classes: tuple[str, ...]) -> None:
    """Reorder the outputs of each anchor in place: classes as in CLASSES, width before length."""
    order = {"classes": [classes.index(name) for name in CLASSES], "boxes": [0, 1, 2, 4, 3, 5, 6, 7, 8]}
    for branch, index in order.items():
        for leaf in ("weight", "bias"):
            name = f"heads.detection.branches.{branch}.layer.{leaf}"
            weights[name] = weights[name].unflatten(0, (-1, len(index)))[:, index].flatten(0, 1)
