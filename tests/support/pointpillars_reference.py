"""PointPillars written once more, under mmdet3d's names and in its order of operations, small and plain.

`tests/mmdet3d` compares with mmdet3d itself; this stands in for it where it is not installed.
"""

from pathlib import Path

import torch
from centerpoint_reference import conv, described, disturb, lifted_stages, lifts, named, norm, run, second, stages
from infos import MMDET3D_CLASSES
from torch import Tensor, nn
from torch.nn import functional as F

CONFIG = """
class_names = [CLASSES]
model = dict(
    type='MVXFasterRCNN',
    data_preprocessor=dict(type='Det3DDataPreprocessor', voxel=True, voxel_layer=dict(
        max_num_points=6, point_cloud_range=RANGE, voxel_size=[0.4, 0.4, 8], max_voxels=(500, 700))),
    pts_voxel_encoder=dict(
        type='HardVFE', in_channels=4, feat_channels=[8, 8], with_distance=False, voxel_size=[0.4, 0.4, 8],
        with_cluster_center=True, with_voxel_center=True, point_cloud_range=RANGE,
        norm_cfg=dict(type='naiveSyncBN1d', eps=1e-2, momentum=0.01)),
    pts_middle_encoder=dict(type='PointPillarsScatter', in_channels=8, output_shape=[64, 64]),
    pts_backbone=dict(
        type='SECOND', in_channels=8, norm_cfg=NORM, layer_nums=[1, 1, 2], layer_strides=[2, 2, 2],
        out_channels=[8, 12, 16]),
    pts_neck=NECK,
    pts_bbox_head=dict(
        type='Anchor3DHead', num_classes=10, in_channels=CHANNELS, feat_channels=CHANNELS,
        use_direction_classifier=True,
        anchor_generator=dict(
            type='AlignedAnchor3DRangeGenerator', ranges=[[-12.8, -12.8, -1.8, 12.8, 12.8, -1.8]], scales=SCALES,
            sizes=[[2.6, 0.9, 1.0], [0.4, 0.4, 1.0]], custom_values=[0, 0], rotations=[0, 1.57], reshape_out=True),
        assigner_per_size=False, diff_rad_by_sin=True, dir_offset=-0.7854,
        bbox_coder=dict(type='DeltaXYZWLHRBBoxCoder', code_size=9),
        loss_cls=dict(type='mmdet.FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0)),
    test_cfg=dict(pts=dict(
        use_rotate_nms=True, nms_across_levels=False, nms_pre=100, nms_thr=0.2, score_thr=0.05, min_bbox_size=0,
        max_num=50)))
test_pipeline = [dict(type='LoadPointsFromMultiSweeps', sweeps_num=3, test_mode=True)]
"""
NECKS = {
    "fpn": "dict(type='mmdet.FPN', norm_cfg=NORM, act_cfg=dict(type='ReLU'), in_channels=[8, 12, 16], out_channels=8, "
    "start_level=0, num_outs=3)",
    "secfpn": "dict(type='SECONDFPN', norm_cfg=NORM, in_channels=[8, 12, 16], upsample_strides=[1, 2, 4], "
    "out_channels=[8, 8, 8])",
}


class Reference(nn.Module):
    """The network of CONFIG."""

    def __init__(self, neck: str) -> None:
        super().__init__()
        layers = [named(linear=nn.Linear(n, 8, bias=False), norm=nn.BatchNorm1d(8, eps=1e-2)) for n in (10, 16)]
        self.pts_voxel_encoder = named(vfe_layers=nn.ModuleList(layers))
        self.pts_backbone = second()
        if neck == "fpn":
            laterals = [named(conv=conv(n, 8, 1)[0], bn=norm(8)) for n in (8, 12, 16)]
            smooths = [named(conv=conv(8, 8, 3)[0], bn=norm(8)) for _ in range(3)]
            self.pts_neck = named(lateral_convs=nn.ModuleList(laterals), fpn_convs=nn.ModuleList(smooths))
        else:
            ups = ((8, 1), (12, 2), (16, 4))
            self.pts_neck = lifts(*(nn.ConvTranspose2d(n, 8, up, up, bias=False) for n, up in ups))
        heads = {"conv_cls": 4 * 10, "conv_reg": 4 * 9, "conv_dir_cls": 4 * 2}
        inputs = 8 if neck == "fpn" else 24
        self.pts_bbox_head = named(**{name: nn.Conv2d(inputs, n, 1) for name, n in heads.items()})

    def forward(self, voxels: Tensor, counts: Tensor, cells: Tensor) -> list[list[Tensor]]:
        """voxels (P, M, 5), counts (P,), cells (P, 2) row and column -> classes, boxes and directions of each level."""
        points = described(voxels, counts, cells, [0, 1, 2, 4])
        first, last = self.pts_voxel_encoder.vfe_layers
        points = F.relu(first.norm(first.linear(points).permute(0, 2, 1)).permute(0, 2, 1))
        points = torch.cat([points, points.amax(1, keepdim=True).expand_as(points)], dim=2)
        features = F.relu(last.norm(last.linear(points).permute(0, 2, 1))).amax(dim=2)
        levels = self._neck(stages(self.pts_backbone, features, cells))
        head = self.pts_bbox_head
        return [[layer(level) for level in levels] for layer in (head.conv_cls, head.conv_reg, head.conv_dir_cls)]

    def _neck(self, found: list[Tensor]) -> list[Tensor]:
        neck = self.pts_neck
        if hasattr(neck, "deblocks"):
            return [lifted_stages(neck, found)]
        maps = [run(module, x) for module, x in zip(neck.lateral_convs, found, strict=True)]
        for i in (1, 0):
            maps[i] = maps[i] + F.interpolate(maps[i + 1], scale_factor=2.0, mode="nearest")
        return [run(module, x) for module, x in zip(neck.fpn_convs, maps, strict=True)]


@torch.no_grad()
def reference(neck: str) -> Reference:
    torch.manual_seed(0)
    model = Reference(neck).eval()
    disturb(model)
    model.pts_voxel_encoder.vfe_layers[0].norm.running_var.uniform_(2, 5)
    return model


def files(folder: Path, neck: str) -> tuple[Path, Path]:
    """Configuration and checkpoint of it, as mmdet3d and mmengine write them."""
    pyramid = neck == "fpn"
    text = CONFIG.replace("NECK", NECKS[neck])
    for name, value in {
        "CLASSES": ", ".join(map(repr, MMDET3D_CLASSES)),
        "RANGE": "[-12.8, -12.8, -5, 12.8, 12.8, 3]",
        "NORM": "dict(type='naiveSyncBN2d', eps=1e-3, momentum=0.01)",
        "CHANNELS": "8" if pyramid else "24",
        "SCALES": "[1, 2, 4]" if pyramid else "[1]",
    }.items():
        text = text.replace(name, value)
    (folder / f"{neck}.py").write_text(text)
    torch.save({"meta": {"epoch": 24}, "state_dict": reference(neck).state_dict()}, folder / f"{neck}.pth")
    return folder / f"{neck}.py", folder / f"{neck}.pth"
