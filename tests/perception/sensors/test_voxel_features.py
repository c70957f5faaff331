"""Voxel feature encoding and the trunk's pyramid against the definition, pillar by pillar and level by level."""

import torch
from torch.nn import functional as F
from vocabulary import CONDITIONS

from perception.bev.pyramid import PyramidTrunk
from perception.config import Lidar, Trunk
from perception.grid import BevGrid
from perception.modules.bank import Bank
from perception.sensors.lidar.pillars import group
from perception.sensors.lidar.voxel_features import VoxelFeatureEncoder

GRID = BevGrid(x=(-4.0, 4.0), y=(-2.0, 2.0), z=(-3.0, 1.0), cell=0.5)


def test_encoding_is_what_the_definition_gives_for_each_pillar() -> None:
    """Two layers; a linear layer of the points beside the pillar's greatest, rows without a point taking part."""
    torch.manual_seed(0)
    encoder = VoxelFeatureEncoder(
        Lidar(max_pillars=60, points_per_pillar=4, channels=5, encoder="padded", hidden=(6,)), GRID
    ).eval()
    for layer in encoder.layers:
        for values in (layer.norm.layer.running_mean, layer.norm.layer.bias.data):
            values.normal_()
        layer.norm.layer.running_var.uniform_(0.5, 2)
    points = torch.rand(150, 5) * torch.tensor([7.8, 3.8, 3.8, 255, 0.5]) - torch.tensor([3.9, 1.9, 2.9, 0, 0])
    pillars, counts, cells = torch.zeros(60, 4, 5), torch.zeros(60, dtype=torch.int), torch.zeros(60, dtype=torch.int)
    found = group(points.numpy(), GRID, pillars.numpy(), counts.numpy(), cells.numpy())
    assert 0 < found <= 60
    assert len(counts.unique()) > 3  # full pillars, others, and padding
    canvas = encoder(pillars[None], counts[None], cells[None])[0].detach()

    expected = torch.zeros_like(canvas).flatten(1)
    first, second = encoder.layers
    linear = torch.cat([second.points.layer.weight, second.pillar.layer.weight], dim=1)  # of points, of the pillar
    for pillar, count, cell in zip(pillars[:found], counts, cells, strict=False):
        real = pillar[:count]
        row, column = divmod(int(cell), 16)
        middle = torch.tensor([-4 + (column + 0.5) * 0.5, -2 + (row + 0.5) * 0.5, -1.0])
        described = torch.zeros(4, 11)
        described[:count] = torch.cat([real, real[:, :3] - real[:, :3].mean(0), real[:, :3] - middle], dim=1)
        x = torch.relu(first.norm.layer(described * encoder.scale @ first.points.layer.weight.T))
        x = torch.cat([x, x.amax(0).expand(4, -1)], dim=1)
        expected[:, cell] = torch.relu(second.norm.layer(x @ linear.T)).amax(0).detach()
    torch.testing.assert_close(canvas.flatten(1), expected, rtol=1e-5, atol=1e-5)
    assert (canvas != 0).any(dim=0).sum() > found / 2


def test_pyramid_adds_the_coarser_levels_to_the_finer_ones() -> None:
    torch.manual_seed(0)
    config = Trunk(channels=(4, 6, 8), blocks=(1, 1, 2), strides=(2, 2, 2), up_channels=5)
    trunk = PyramidTrunk(config, 3).eval()
    x, stages = torch.randn(1, 3, 16, 24), []
    for stage in trunk.stages:
        stages.append(stage(x if not stages else stages[-1]))
    own = [lateral(stage) for lateral, stage in zip(trunk.laterals, stages, strict=True)]
    third = own[2]
    second = own[1] + third.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    first = own[0] + second.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    for smooth, level, got in zip(trunk.smooths, (first, second, third), trunk(x), strict=True):
        layer, norm = smooth.conv.layer, smooth.norm.layer
        assert layer.weight.shape == (5, 5, 3, 3)
        expected = torch.relu(norm(F.conv2d(level, layer.weight, padding=1)))
        torch.testing.assert_close(got, expected)
    assert [tuple(level.shape) for level in trunk(x)] == [(1, 5, 8, 12), (1, 5, 4, 6), (1, 5, 2, 3)]
    assert {"trunk.stage2.0", "trunk.lateral1", "trunk.smooth0.norm"} <= {*Bank(trunk, CONDITIONS).slots}
