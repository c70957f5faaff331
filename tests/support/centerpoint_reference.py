"""CenterPoint on pillars written once more, under mmdet3d's names and in its order of operations, small and plain.

`tests/mmdet3d` compares with mmdet3d itself; this stands in for it where it is not installed.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from vocabulary import CLASSES

TASKS = (CLASSES[0:1], CLASSES[1:3], CLASSES[3:5], CLASSES[5:6], CLASSES[6:8], CLASSES[8:10])
BRANCHES = {"reg": 2, "height": 1, "dim": 3, "rot": 2, "vel": 2}
CONFIG = """
model = dict(
    type='CenterPoint',
    data_preprocessor=dict(type='Det3DDataPreprocessor', voxel=True, voxel_layer=dict(
        max_num_points=6, voxel_size=SIZE, max_voxels=(500, 700), point_cloud_range=RANGE)),
    pts_voxel_encoder=dict(
        type='PillarFeatureNet', in_channels=5, feat_channels=[8], voxel_size=SIZE, legacy=False,
        norm_cfg=dict(type='BN1d', eps=1e-3, momentum=0.01), point_cloud_range=RANGE),
    pts_middle_encoder=dict(type='PointPillarsScatter', in_channels=8, output_shape=(64, 64)),
    pts_backbone=dict(
        type='SECOND', in_channels=8, out_channels=[8, 12, 16], layer_nums=[1, 1, 2], layer_strides=[2, 2, 2],
        norm_cfg=dict(type='BN', eps=1e-3, momentum=0.01), conv_cfg=dict(type='Conv2d', bias=False)),
    pts_neck=dict(
        type='SECONDFPN', in_channels=[8, 12, 16], out_channels=[8, 8, 8],
        upsample_strides=[0.5, 1, 2], norm_cfg=dict(type='BN', eps=1e-3, momentum=0.01),
        upsample_cfg=dict(type='deconv', bias=False), use_conv_for_no_stride=True),
    pts_bbox_head=dict(
        type='CenterHead', in_channels=24, tasks=[TASKS], share_conv_channel=8, norm_bbox=True,
        common_heads=dict(reg=(2, 2), height=(1, 2), dim=(3, 2), rot=(2, 2), vel=(2, 2)),
        bbox_coder=dict(
            type='CenterPointBBoxCoder', post_center_range=[-12.0, -13.0, -10.0, 13.0, 13.0, 10.0], max_num=40,
            score_threshold=0.1, out_size_factor=4, voxel_size=[0.4, 0.4], pc_range=[-12.8, -12.8]),
        separate_head=dict(type='SeparateHead', init_bias=-2.19, head_conv=8, final_kernel=3)),
    test_cfg=dict(pts=dict(
        post_center_limit_range=[-12.0, -13.0, -10.0, 13.0, 13.0, 10.0], min_radius=[4, 12, 10, 1, 0.85, 0.175],
        score_threshold=0.1, nms_type='circle', pre_max_size=1000, post_max_size=83, nms_thr=0.2)))
test_pipeline = [dict(type='LoadPointsFromMultiSweeps', sweeps_num=2, use_dim=[0, 1, 2, 3, 4])]
"""
TASK_LIST = ", ".join(f"dict(num_class={len(task)}, class_names={list(task)})" for task in TASKS)


def filled(config: str) -> str:
    config = config.replace("SIZE", "[0.4, 0.4, 8]").replace("RANGE", "[-12.8, -12.8, -5.0, 12.8, 12.8, 3.0]")
    return config.replace("TASKS", TASK_LIST)


CONFIG = filled(CONFIG)


class Reference(nn.Module):
    """The network of CONFIG."""

    branches = BRANCHES

    def __init__(self) -> None:
        super().__init__()
        layer = named(linear=nn.Linear(11, 8, bias=False), norm=nn.BatchNorm1d(8, eps=1e-3))
        self.pts_voxel_encoder = named(pfn_layers=nn.ModuleList([layer]))
        self.make_trunk()

        def module(inputs: int) -> nn.Module:
            return named(conv=nn.Conv2d(inputs, 8, 3, padding=1, bias=False), bn=nn.BatchNorm2d(8))

        def branch(outputs: int) -> nn.Module:
            return nn.Sequential(module(8), nn.Conv2d(8, outputs, 3, padding=1))

        tasks = [{name: branch(n) for name, n in {**self.branches, "heatmap": len(t)}.items()} for t in TASKS]
        self.pts_bbox_head = named(shared_conv=module(24), task_heads=nn.ModuleList(map(nn.ModuleDict, tasks)))

    def make_trunk(self) -> None:
        self.pts_backbone = second()
        down, same = nn.Conv2d(8, 8, 2, 2, bias=False), nn.Conv2d(12, 8, 1, bias=False)
        self.pts_neck = lifts(down, same, nn.ConvTranspose2d(16, 8, 2, 2, bias=False))

    def trunk(self, points: Tensor, counts: Tensor, cells: Tensor) -> list[Tensor]:
        """Features of points (P, 8, M) -> what each stage makes of the pillars'."""
        return stages(self.pts_backbone, points.amax(dim=2), cells)

    def forward(self, voxels: Tensor, counts: Tensor, cells: Tensor) -> list[dict[str, Tensor]]:
        """voxels (P, M, 5), counts (P,), cells (P, 2) row and column -> the maps of each task."""
        points = described(voxels, counts, cells, [0, 1, 2, 3, 4])
        layer = self.pts_voxel_encoder.pfn_layers[0]
        points = F.relu(layer.norm(layer.linear(points).permute(0, 2, 1)))
        shared = run(self.pts_bbox_head.shared_conv, lifted_stages(self.pts_neck, self.trunk(points, counts, cells)))
        return [
            {name: branch[1](run(branch[0], shared)) for name, branch in task.items()}
            for task in self.pts_bbox_head.task_heads
        ]


def named(**children: nn.Module) -> nn.Module:
    module = nn.Module()
    for name, child in children.items():
        module.add_module(name, child)
    return module


def norm(channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels, eps=1e-3)


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), norm(outputs), nn.ReLU()]


def run(module: nn.Module, x: Tensor) -> Tensor:
    return F.relu(module.bn(module.conv(x)))


def second() -> nn.Module:
    """SECOND with three stages of 8, 12 and 16 channels."""
    channels, blocks = [8, 8, 12, 16], []
    for i, count in enumerate((1, 1, 2)):
        block = conv(channels[i], channels[i + 1], 3, 2)
        for _ in range(count):
            block += conv(channels[i + 1], channels[i + 1], 3)
        blocks.append(nn.Sequential(*block))
    return named(blocks=nn.ModuleList(blocks))


def scattered(features: Tensor, cells: Tensor) -> Tensor:
    canvas = torch.zeros(8, 64 * 64)
    canvas[:, cells[:, 0] * 64 + cells[:, 1]] = features.t()
    return canvas.view(1, 8, 64, 64)


def stages(backbone: nn.Module, features: Tensor, cells: Tensor) -> list[Tensor]:
    """What each stage makes of the pillars' features."""
    x, found = scattered(features, cells), []
    for block in backbone.blocks:
        x = block(x)
        found.append(x)
    return found


def lifts(*layers: nn.Module) -> nn.Module:
    """SECONDFPN of these convolutions."""
    return named(deblocks=nn.ModuleList(nn.Sequential(layer, norm(8), nn.ReLU()) for layer in layers))


def lifted_stages(neck: nn.Module, found: list[Tensor]) -> Tensor:
    return torch.cat([deblock(x) for deblock, x in zip(neck.deblocks, found, strict=True)], dim=1)


def described(voxels: Tensor, counts: Tensor, cells: Tensor, columns: list[int]) -> Tensor:
    """Of each point these columns, and how far it is from the mean and from the middle of its pillar."""
    mean = voxels[..., :3].sum(1, keepdim=True) / counts[:, None, None]
    middle = torch.stack([cells[:, 1] * 0.4 - 12.6, cells[:, 0] * 0.4 - 12.6, torch.full((len(cells),), -1.0)], dim=1)
    points = torch.cat([voxels[..., columns], voxels[..., :3] - mean, voxels[..., :3] - middle[:, None]], dim=-1)
    return points * (torch.arange(voxels.shape[1]) < counts[:, None])[..., None]


def disturb(model: nn.Module) -> None:
    """Random weights and statistics of normalisations that all matter."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.weight.uniform_(0.7, 1.3)
            module.bias.uniform_(-0.2, 0.2)
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.05, 0.3)


@torch.no_grad()
def reference() -> Reference:
    torch.manual_seed(0)
    model = Reference().eval()
    disturb(model)
    settle(model)
    return model


def settle(model: Reference) -> None:
    """Scores and features that vary."""
    first = model.pts_voxel_encoder.pfn_layers[0]
    first.linear.weight[:, 3] /= 100  # intensities reach 255
    first.norm.running_var.uniform_(2, 5)
    for task in model.pts_bbox_head.task_heads:
        task["heatmap"][1].bias.fill_(-2.0)


def files(folder: Path) -> tuple[Path, Path]:
    """Configuration and checkpoint of it, as mmdet3d and mmengine write them."""
    return write_network(folder, "centerpoint", CONFIG, reference())


def write_network(folder: Path, name: str, config: str, model: nn.Module) -> tuple[Path, Path]:
    file, checkpoint = folder / f"{name}.py", folder / f"{name}.pth"
    file.write_text(config)
    torch.save({"meta": {"epoch": 20}, "state_dict": model.state_dict()}, checkpoint)
    return file, checkpoint


def voxelise(points: np.ndarray, most: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hard voxelisation on the grid of CONFIG, point by point: voxels, counts, cells (P, 2)."""
    places: dict[tuple[int, int], list[np.ndarray]] = {}
    for point in points.astype(np.float32):
        column, row = (np.floor((point[i] - np.float32(-12.8)) / np.float32(0.4)) for i in (0, 1))
        level = np.floor((point[2] - np.float32(-5)) / np.float32(8))
        cell = (int(row), int(column))
        if not (0 <= column < 64 and 0 <= row < 64 and level == 0) or (cell not in places and len(places) == most):
            continue
        if len(places.setdefault(cell, [])) < size:
            places[cell].append(point)
    voxels = np.zeros((len(places), size, 5), np.float32)
    for voxel, inside in zip(voxels, places.values(), strict=True):
        voxel[: len(inside)] = inside
    return voxels, np.array([len(inside) for inside in places.values()], np.int32), np.array([*places], np.int64)
