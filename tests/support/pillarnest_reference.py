"""PillarNeSt written once more from its published code, under its names and in its order of operations, small.

Its repository needs mmdet3d 0.18, mmcv 1.4 and Python 3.6, so this stands in for it.
"""

from itertools import pairwise
from pathlib import Path

import torch
from centerpoint_reference import BRANCHES, Reference, disturb, filled, lifts, named, scattered, settle, write_network
from torch import Tensor, nn
from torch.nn import functional as F

DEPTHS, CHANNELS = (2, 1, 1, 2, 1), (8, 12, 16, 16, 20)
BETA, THRESHOLD, MOST = 0.4, 0.1, 40
CONFIG = """
voxel_size = SIZE
model = dict(
    type='CenterPoint',
    init_cfg=[],
    pts_voxel_layer=dict(max_num_points=6, voxel_size=SIZE, max_voxels=(500, 700), point_cloud_range=RANGE),
    pts_voxel_encoder=dict(
        type='HeightPillarFeatureNet', in_channels=5, feat_channels=[8], with_distance=False, voxel_size=SIZE,
        norm_cfg=dict(type='BN1d', eps=1e-3, momentum=0.01), legacy=False, point_cloud_range=RANGE, mode='maxavg'),
    pts_middle_encoder=dict(type='PointPillarsScatter', in_channels=8, output_shape=(64, 64)),
    pts_backbone=dict(
        type='ConvNeXt_PC', arch=dict(depths=[2, 1, 1, 2, 1], channels=[48, 12, 16, 16, 20]), in_channels=8,
        out_indices=[2, 3, 4], drop_path_rate=0.4, layer_scale_init_value=1.0, gap_before_final_norm=False,
        init_cfg=dict(type='Pretrained', checkpoint='/data/convnext_tiny.pth', prefix='backbone.')),
    pts_neck=dict(
        type='SECONDFPN', in_channels=[16, 16, 20], out_channels=[8, 8, 8], upsample_strides=[1, 2, 4],
        norm_cfg=dict(type='BN', eps=1e-3, momentum=0.01), upsample_cfg=dict(type='deconv', bias=False),
        use_conv_for_no_stride=True),
    pts_bbox_head=dict(
        type='CenterPlusHead', in_channels=24, tasks=[TASKS], share_conv_channel=8, norm_bbox=True,
        common_heads=dict(reg=(2, 2), height=(1, 2), dim=(3, 2), rot=(2, 2), vel=(2, 2), iou=(1, 2)),
        bbox_coder=dict(
            type='CenterPointBBoxCoder', post_center_range=[-12.0, -13.0, -10.0, 13.0, 13.0, 10.0], max_num=40,
            score_threshold=0.1, out_size_factor=4, voxel_size=[0.4, 0.4], pc_range=[-12.8, -12.8], code_size=9),
        separate_head=dict(type='SeparateHead', init_bias=-2.19, head_conv=8, final_kernel=3),
        iou_score=dict(type='BboxOverlaps3D', coordinate='lidar'), iou_score_weight=1.0),
    test_cfg=dict(pts=dict(
        post_center_limit_range=[-12.0, -13.0, -10.0, 13.0, 13.0, 10.0], min_radius=[4, 12, 10, 1, 0.85, 0.175],
        score_threshold=0.1, nms_type='rotate', pre_max_size=1000, post_max_size=83, nms_thr=0.2,
        iou_score_beta=0.4)))
test_pipeline = [
    dict(type='LoadPointsFromMultiSweeps', sweeps_num=2, use_dim=[0, 1, 2, 3, 4], pad_empty_sweeps=True),
    dict(type='MultiScaleFlipAug3D', flip=False, transforms=[dict(type='RandomFlip3D')])]
"""
CONFIG = filled(CONFIG)


class ChannelsLast(nn.LayerNorm):
    """Its LN2d."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1).contiguous()).permute(0, 3, 1, 2)


class Block(nn.Module):
    """mmcls's ConvNeXtBlock, with linear layers at each cell."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise_conv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = ChannelsLast(channels, eps=1e-6)
        self.pointwise_conv1 = nn.Linear(channels, 4 * channels)
        self.pointwise_conv2 = nn.Linear(4 * channels, channels)
        self.gamma = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise_conv(x)).permute(0, 2, 3, 1)
        y = self.pointwise_conv2(F.gelu(self.pointwise_conv1(y))).permute(0, 3, 1, 2)
        return x + y.mul(self.gamma.view(1, -1, 1, 1))


class PillarNeSt(Reference):
    """The network of CONFIG."""

    branches = {**BRANCHES, "iou": 1}  # noqa: RUF012

    def make_trunk(self) -> None:
        downs: list[nn.Module | None] = [None]
        for before, channels in pairwise(CHANNELS):
            downs.append(nn.Sequential(ChannelsLast(before), nn.Conv2d(before, channels, 2, 2)))
        stages = [nn.Sequential(*(Block(c) for _ in range(n))) for n, c in zip(DEPTHS, CHANNELS, strict=True)]
        norms = {f"norm{i}": ChannelsLast(CHANNELS[i], eps=1e-6) for i in (2, 3, 4)}
        self.pts_backbone = named(downsample_layers=nn.ModuleList(downs), stages=nn.ModuleList(stages), **norms)
        self.pts_backbone.bias = nn.Parameter(torch.randn(3))  # its forward pass does not read it
        same, twice = nn.Conv2d(16, 8, 1, bias=False), nn.ConvTranspose2d(16, 8, 2, 2, bias=False)
        self.pts_neck = lifts(same, twice, nn.ConvTranspose2d(20, 8, 4, 4, bias=False))

    def trunk(self, points: Tensor, counts: Tensor, cells: Tensor) -> list[Tensor]:
        points = points.permute(0, 2, 1)
        x = scattered((points.max(dim=1)[0] + points.sum(dim=1) / counts[:, None]) / 2.0, cells)
        outs, backbone = [], self.pts_backbone
        for i, stage in enumerate(backbone.stages):
            x = stage(backbone.downsample_layers[i](x) if i else x)
            if i >= 2:
                outs.append(getattr(backbone, f"norm{i}")(x))
        return outs


@torch.no_grad()
def reference() -> PillarNeSt:
    torch.manual_seed(0)
    model = PillarNeSt().eval()
    disturb(model)
    for module in model.modules():
        if isinstance(module, Block):
            module.gamma.uniform_(0.5, 1.5)
        if isinstance(module, ChannelsLast):
            module.weight.uniform_(0.7, 1.3)
            module.bias.uniform_(-0.2, 0.2)
    settle(model)
    for task in model.pts_bbox_head.task_heads:
        for name in ("heatmap", "iou"):
            task[name][1].weight.mul_(4)
    return model


def decode(task: dict[str, Tensor]) -> list[tuple[int, float, list[float]]]:
    """The boxes of one task as its coder and CenterPlusHead give them to NMS: class, score, x y z w l h yaw vx vy.

    The yaw is that of nuScenes' box, as its `output_to_nusc_box` turns it.
    """
    heat = task["heatmap"][0].sigmoid()
    values, cells = heat.flatten().topk(MOST)
    found = []
    for value, index in zip(values, cells, strict=True):
        label, cell = divmod(int(index), heat[0].numel())
        row, column = divmod(cell, heat.shape[2])
        at = {name: maps[0, :, row, column].double() for name, maps in task.items()}
        if value <= THRESHOLD:
            continue
        score = value ** (1 - BETA) * at["iou"].sigmoid() ** BETA
        yaw = -torch.atan2(at["rot"][0], at["rot"][1]) - torch.pi / 2
        x, y = ((at["reg"] + torch.tensor([column, row])) * 1.6 - 12.8).tolist()
        box = [x, y, *at["height"].tolist(), *at["dim"].exp().tolist(), float(yaw), *at["vel"].tolist()]
        found.append((label, float(score), box))
    return sorted(found, key=lambda each: -each[1])


def files(folder: Path) -> tuple[Path, Path]:
    """Configuration and checkpoint of it, as mmcv 1.4 writes them."""
    return write_network(folder, "pillarnest", CONFIG, reference())
