"""PointPillars written once more, under mmdet3d's names and in its order of operations, small and plain.

`tests/mmdet3d` compares with mmdet3d itself; this stands in for it where it is not installed.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

THEIRS = (
    "car", "truck", "trailer", "bus", "construction_vehicle", "bicycle", "motorcycle", "pedestrian", "traffic_cone",
    "barrier",
)  # fmt: skip
CONFIG = """
voxel_size = [0.4, 0.4, 8]
class_names = [CLASSES]
near = [-12.8, -12.8, -5, 12.8, 12.8, 3]
norm = dict(type='naiveSyncBN2d', eps=1e-3, momentum=0.01)
model = dict(
    type='MVXFasterRCNN',
    data_preprocessor=dict(type='Det3DDataPreprocessor', voxel=True, voxel_layer=dict(
        max_num_points=6, point_cloud_range=near, voxel_size=voxel_size, max_voxels=(500, 700))),
    pts_voxel_encoder=dict(
        type='HardVFE', in_channels=4, feat_channels=[8, 8], with_distance=False, voxel_size=voxel_size,
        with_cluster_center=True, with_voxel_center=True, point_cloud_range=near,
        norm_cfg=dict(type='naiveSyncBN1d', eps=1e-2, momentum=0.01)),
    pts_middle_encoder=dict(type='PointPillarsScatter', in_channels=8, output_shape=[64, 64]),
    pts_backbone=dict(
        type='SECOND', in_channels=8, norm_cfg=norm, layer_nums=[1, 1, 2], layer_strides=[2, 2, 2],
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
""".replace("CLASSES", ", ".join(map(repr, THEIRS)))
NECKS = {
    "fpn": "dict(type='mmdet.FPN', norm_cfg=norm, act_cfg=dict(type='ReLU'), in_channels=[8, 12, 16], out_channels=8, "
    "start_level=0, num_outs=3)",
    "secfpn": "dict(type='SECONDFPN', norm_cfg=norm, in_channels=[8, 12, 16], upsample_strides=[1, 2, 4], "
    "out_channels=[8, 8, 8])",
}


class Reference(nn.Module):
    """The network of CONFIG."""

    def __init__(self, neck: str) -> None:
        super().__init__()
        layers = [_named(linear=nn.Linear(n, 8, bias=False), norm=nn.BatchNorm1d(8, eps=1e-2)) for n in (10, 16)]
        self.pts_voxel_encoder = _named(vfe_layers=nn.ModuleList(layers))
        channels, blocks = [8, 8, 12, 16], []
        for i, count in enumerate((1, 1, 2)):
            block = _conv(channels[i], channels[i + 1], 3, 2)
            for _ in range(count):
                block += _conv(channels[i + 1], channels[i + 1], 3)
            blocks.append(nn.Sequential(*block))
        self.pts_backbone = _named(blocks=nn.ModuleList(blocks))
        if neck == "fpn":
            laterals = [_named(conv=_conv(n, 8, 1)[0], bn=_norm(8)) for n in channels[1:]]
            smooths = [_named(conv=_conv(8, 8, 3)[0], bn=_norm(8)) for _ in range(3)]
            self.pts_neck = _named(lateral_convs=nn.ModuleList(laterals), fpn_convs=nn.ModuleList(smooths))
        else:
            lifts = [
                nn.ConvTranspose2d(n, 8, up, up, bias=False) for n, up in zip(channels[1:], (1, 2, 4), strict=True)
            ]
            self.pts_neck = _named(deblocks=nn.ModuleList(nn.Sequential(lift, _norm(8), nn.ReLU()) for lift in lifts))
        heads = {"conv_cls": 4 * 10, "conv_reg": 4 * 9, "conv_dir_cls": 4 * 2}
        inputs = 8 if neck == "fpn" else 24
        self.pts_bbox_head = _named(**{name: nn.Conv2d(inputs, n, 1) for name, n in heads.items()})

    def forward(self, voxels: Tensor, counts: Tensor, cells: Tensor) -> list[list[Tensor]]:
        """voxels (P, M, 5), counts (P,), cells (P, 2) row and column -> classes, boxes and directions of each level."""
        points = voxels[..., [0, 1, 2, 4]]
        mean = points[..., :3].sum(1, keepdim=True) / counts[:, None, None]
        middle = torch.stack(
            [cells[:, 1] * 0.4 - 12.6, cells[:, 0] * 0.4 - 12.6, torch.full((len(cells),), -1.0)], dim=1
        )
        points = torch.cat([points, points[..., :3] - mean, points[..., :3] - middle[:, None]], dim=-1)
        points = points * (torch.arange(voxels.shape[1]) < counts[:, None])[..., None]
        first, second = self.pts_voxel_encoder.vfe_layers
        points = F.relu(first.norm(first.linear(points).permute(0, 2, 1)).permute(0, 2, 1))
        points = torch.cat([points, points.amax(1, keepdim=True).expand_as(points)], dim=2)
        features = F.relu(second.norm(second.linear(points).permute(0, 2, 1))).amax(dim=2)
        canvas = torch.zeros(8, 64 * 64)
        canvas[:, cells[:, 0] * 64 + cells[:, 1]] = features.t()
        x, stages = canvas.view(1, 8, 64, 64), []
        for block in self.pts_backbone.blocks:
            x = block(x)
            stages.append(x)
        levels = self._neck(stages)
        head = self.pts_bbox_head
        return [[conv(level) for level in levels] for conv in (head.conv_cls, head.conv_reg, head.conv_dir_cls)]

    def _neck(self, stages: list[Tensor]) -> list[Tensor]:
        neck = self.pts_neck
        if hasattr(neck, "deblocks"):
            return [torch.cat([deblock(x) for deblock, x in zip(neck.deblocks, stages, strict=True)], dim=1)]
        first, second, third = (_run(module, x) for module, x in zip(neck.lateral_convs, stages, strict=True))
        second = second + F.interpolate(third, scale_factor=2.0, mode="nearest")
        first = first + F.interpolate(second, scale_factor=2.0, mode="nearest")
        return [_run(module, x) for module, x in zip(neck.fpn_convs, (first, second, third), strict=True)]


def _named(**children: nn.Module) -> nn.Module:
    module = nn.Module()
    for name, child in children.items():
        module.add_module(name, child)
    return module


def _norm(channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels, eps=1e-3)


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return [conv, _norm(outputs), nn.ReLU()]


def _run(module: nn.Module, x: Tensor) -> Tensor:
    return F.relu(module.bn(module.conv(x)))


def reference(neck: str) -> Reference:
    """With random weights and statistics that all matter."""
    torch.manual_seed(0)
    model = Reference(neck).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.weight.uniform_(0.7, 1.3)
                module.bias.uniform_(-0.2, 0.2)
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.05, 0.3)
        model.pts_voxel_encoder.vfe_layers[0].norm.running_var.uniform_(2, 5)
    return model


def files(folder: Path, neck: str) -> tuple[Path, Path]:
    """Configuration and checkpoint of it, as mmdet3d and mmengine write them."""
    text = CONFIG.replace("NECK", NECKS[neck])
    for name, value in {"CHANNELS": "8", "SCALES": "[1, 2, 4]"}.items() if neck == "fpn" else {
        "CHANNELS": "24", "SCALES": "[1]"
    }.items():  # fmt: skip
        text = text.replace(name, value)
    (folder / f"{neck}.py").write_text(text)
    torch.save({"meta": {"epoch": 24}, "state_dict": reference(neck).state_dict()}, folder / f"{neck}.pth")
    return folder / f"{neck}.py", folder / f"{neck}.pth"
