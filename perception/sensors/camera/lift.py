"""View transform from cameras to BEV: every BEV voxel samples the image features at its projections.

The projection matrices are inputs, so that one engine works with any calibration. Only 4-D GridSample is needed, which
TensorRT has without plugins.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perception.grid import BevGrid
from perception.sensors.camera.config import CameraBranch


class Lift(nn.Module):
    """Features (B, N, C, h, w) with depth probabilities (B, N, D, h, w) -> (B, C * Z, rows, columns).

    A voxel takes the feature at its projection, weighted by the probability of its depth there, summed over the
    cameras. The Z heights become channels.
    """

    voxels: Tensor  # (3, Z * rows * columns) m, in the reference frame

    def __init__(self, config: CameraBranch, grid: BevGrid) -> None:
        super().__init__()
        self.image, self.depth, self.heights = config.image, config.depth, len(config.heights)
        self.shape = grid.shape
        ground = torch.from_numpy(grid.centers())  # rows columns 2
        layers = [torch.cat([ground, torch.full_like(ground[..., :1], z)], dim=-1) for z in config.heights]
        self.register_buffer("voxels", torch.stack(layers).flatten(0, 2).T.contiguous(), persistent=False)

    def forward(self, context: Tensor, depth: Tensor, image_from_reference: Tensor) -> Tensor:
        b, n, c, h, w = context.shape
        rows, columns = self.shape
        # Not a matrix product, which mixed precision would compute in half precision.
        (x, y, z), m = self.voxels, image_from_reference[..., None]
        projected = m[:, :, :, 0] * x + m[:, :, :, 1] * y + m[:, :, :, 2] * z + m[:, :, :, 3]  # B N 3 V=Z*rows*columns
        along = projected[:, :, 2]  # m, along the optical axis; 0 everywhere for a missing camera
        ahead = along > 0.1
        u = projected[:, :, 0] / torch.where(ahead, along, 1.0)
        v = projected[:, :, 1] / torch.where(ahead, along, 1.0)
        x = ((2 * u + 1) / self.image.width - 1).clamp(-2, 2)  # [-1, 1] from edge to edge of the image
        y = ((2 * v + 1) / self.image.height - 1).clamp(-2, 2)
        seen = ahead & (x.abs() <= 1) & (y.abs() <= 1)  # B N V

        grid = torch.stack([x, y], dim=-1).reshape(b * n, self.heights * rows, columns, 2)
        sampled = F.grid_sample(context.flatten(0, 1), grid, align_corners=False)  # BN C Z*rows columns

        # Reshape depth to one (h * w, D) image for each camera, so that one 2-D grid_sample interpolates along u and
        # depth; v is the nearest row of features.
        cell_u = (((x + 1) * w - 1) / 2).clamp(0, w - 1)
        cell_v = (((y + 1) * h - 1) / 2).round().clamp(0, h - 1)
        cell = (2 * (cell_v * w + cell_u) + 1) / (h * w) - 1
        far = (2 * (along - self.depth.near) / (self.depth.far - self.depth.near) - 1).clamp(-2, 2)
        grid = torch.stack([far, cell], dim=-1).reshape(b * n, self.heights * rows, columns, 2)
        depth_image = depth.flatten(3).transpose(2, 3).reshape(b * n, 1, h * w, self.depth.bins)
        weight = F.grid_sample(depth_image, grid, align_corners=False)  # BN 1 Z*rows columns
        weight = weight * seen.reshape(weight.shape).to(weight.dtype)

        sampled = (sampled * weight).reshape(b, n, c, self.heights, rows, columns).sum(dim=1)
        return sampled.reshape(b, c * self.heights, rows, columns)
