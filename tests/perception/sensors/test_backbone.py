"""Each part of the backbone against a loop that does the same by the book."""

import numpy as np
import pytest
import torch

from perception.bev.fuse import Fuse
from perception.bev.trunk import Trunk
from perception.config import CameraBranch, Depth, Image, Lidar
from perception.config import Trunk as TrunkConfig
from perception.grid import BevGrid
from perception.sensors.camera.lift import Lift
from perception.sensors.lidar.encoder import PillarEncoder

GRID = BevGrid(x=(-4.0, 4.0), y=(-2.0, 2.0), z=(-2.0, 2.0), cell=1.0)  # 4 rows, 8 columns


def test_pillar_encoder_equals_a_loop_over_points():
    torch.manual_seed(0)
    encoder = PillarEncoder(Lidar(channels=5, points_per_pillar=3), GRID).double().eval()
    encoder.norm.layer.running_mean.normal_()
    encoder.norm.layer.running_var.uniform_(0.5, 2)
    encoder.norm.layer.bias.data.normal_()
    cells, counts = [3, 17, 30], [2, 3, 1]
    points = torch.zeros(1, 5, 3, 5, dtype=torch.float64)
    for i, (cell, count) in enumerate(zip(cells, counts, strict=True)):
        row, column = divmod(cell, 8)
        points[0, i, :count] = torch.rand(count, 5, dtype=torch.float64)
        points[0, i, :count, 0] += GRID.x[0] + column
        points[0, i, :count, 1] += GRID.y[0] + row
    canvas = encoder(
        points,
        torch.tensor([[*counts, 0, 0]], dtype=torch.int32),
        torch.tensor([[*cells, GRID.cells, GRID.cells]], dtype=torch.int32),
    )
    assert canvas.shape == (1, 5, 4, 8)

    expected = torch.zeros(5, 4, 8, dtype=torch.float64)
    for i, (cell, count) in enumerate(zip(cells, counts, strict=True)):
        row, column = divmod(cell, 8)
        real = points[0, i, :count]
        center = torch.tensor([GRID.x[0] + column + 0.5, GRID.y[0] + row + 0.5], dtype=torch.float64)
        best = torch.full((5,), -torch.inf, dtype=torch.float64)
        for point in real:
            ten = torch.cat([point, point[:3] - real[:, :3].mean(0), point[:2] - center])
            ten = ten * torch.tensor([1 / 4, 1 / 4, 1 / 2, 1 / 255, 2, 1, 1, 1, 1, 1], dtype=torch.float64)
            value = encoder.linear.layer.weight @ ten
            norm = encoder.norm.layer
            value = (value - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
            best = torch.maximum(best, value.relu())
        expected[:, row, column] = best
    torch.testing.assert_close(canvas[0], expected, rtol=1e-6, atol=1e-6)  # the scales are float32


def lift_by_loop(config, grid, context, depth, matrices):
    """Bilinear look-up of every voxel in every camera, in numpy, one at a time."""
    n, c, h, w = context.shape
    rows, columns = grid.shape
    result = np.zeros((c, len(config.heights), rows, columns))
    bins = config.depth.bins
    for row, column, (iz, z) in (
        (r, k, e) for r in range(rows) for k in range(columns) for e in enumerate(config.heights)
    ):
        point = np.array([grid.x[0] + (column + 0.5) * grid.cell, grid.y[0] + (row + 0.5) * grid.cell, z, 1.0])
        for i in range(n):
            u, v, along = matrices[i] @ point
            if along <= 0.1:
                continue
            u, v = u / along, v / along
            if not (-0.5 <= u <= config.image.width - 0.5 and -0.5 <= v <= config.image.height - 0.5):
                continue
            fu, fv = (u + 0.5) * w / config.image.width - 0.5, (v + 0.5) * h / config.image.height - 0.5
            feature = np.zeros(c)
            for y in (int(np.floor(fv)), int(np.floor(fv)) + 1):
                for x in (int(np.floor(fu)), int(np.floor(fu)) + 1):
                    if 0 <= y < h and 0 <= x < w:
                        feature += (1 - abs(fv - y)) * (1 - abs(fu - x)) * context[i, :, y, x]
            near_v, near_u = int(np.clip(np.round(fv), 0, h - 1)), np.clip(fu, 0, w - 1)
            bin_at = (along - config.depth.near) / (config.depth.far - config.depth.near) * bins - 0.5
            likely = 0.0
            for x in (int(np.floor(near_u)), int(np.floor(near_u)) + 1):
                for d in (int(np.floor(bin_at)), int(np.floor(bin_at)) + 1):
                    if x < w and 0 <= d < bins:
                        likely += max(0, 1 - abs(near_u - x)) * (1 - abs(bin_at - d)) * depth[i, d, near_v, x]
            result[:, iz, row, column] += likely * feature
    return result.reshape(c * len(config.heights), rows, columns)


def test_lift_equals_a_loop_over_voxels_and_ignores_missing_cameras():
    config = CameraBranch(
        channels=3, image=Image(height=32, width=64), depth=Depth(near=0.5, far=8.0, bins=7), heights=(-0.5, 0.5)
    )
    rng = np.random.default_rng(0)
    lift = Lift(config, GRID).double()
    context = rng.normal(size=(3, 3, 4, 8))
    depth = rng.dirichlet(np.ones(7), size=(3, 4, 8)).transpose(0, 3, 1, 2)
    # One camera looks along x, one along -y and a bit down; the third is missing.
    intrinsics = np.array([[30.0, 0, 31.5], [0, 30.0, 15.5], [0, 0, 1]])
    forward = np.array([[0, -1.0, 0, 0.1], [0, 0, -1, 0.2], [1, 0, 0, 0.3]])
    right = np.array([[-1.0, 0, 0, 0.2], [0, -0.1, -1, 0.1], [0, -1, 0.1, 0.2]])
    matrices = np.stack([intrinsics @ forward, intrinsics @ right, np.zeros((3, 4))])
    pulled = lift(*(torch.from_numpy(a)[None] for a in (context, depth, matrices)))
    expected = lift_by_loop(config, GRID, context, depth, matrices)
    assert (np.abs(expected).sum(axis=0) > 0).mean() > 0.3  # the cameras see a good part of the grid
    np.testing.assert_allclose(pulled[0].numpy(), expected, atol=1e-6)  # voxels are float32 numbers

    none = lift(*(torch.from_numpy(a)[None] for a in (context, depth, 0 * matrices)))
    assert torch.equal(none, torch.zeros_like(none))


def test_lift_keeps_projection_in_full_precision_under_autocast():
    config = CameraBranch(channels=3, image=Image(height=32, width=64), depth=Depth(bins=7), heights=(0.0,))
    lift = Lift(config, GRID)
    context, depth = torch.randn(1, 1, 3, 4, 8), torch.rand(1, 1, 7, 4, 8)
    matrices = torch.tensor([[[[31.5, -30.0, 0, 0.1], [15.5, 0, -30.0, 0.2], [1, 0, 0, 5.3]]]])
    plain = lift(context, depth, matrices)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = lift(context, depth, matrices)
    torch.testing.assert_close(mixed, plain)


@pytest.mark.parametrize(("fused", "head"), [(1, 1), (1, 4), (2, 2), (2, 4), (4, 2)])
def test_trunk_and_fusion_meet_on_the_heads_grid(fused, head):
    fuse = Fuse([(4, 1), (6, 4)], 8, fused).eval()
    trunk = Trunk(
        TrunkConfig(channels=(8, 8), blocks=(1, 1), strides=(1, 2), up_channels=5, stride=head), 8, fused
    ).eval()
    out = trunk(fuse([torch.randn(1, 4, 32, 16), torch.randn(1, 6, 8, 4)]))
    assert out.shape == (1, 10, 32 // head, 16 // head)
