"""Depth with the lens given: the same object at the same distance looks larger through a longer one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from perception.config import CameraBranch, Image
from perception.layers import ConvBlock
from perception.modules.slot import Slot


class LensDepth(nn.Module):
    """Features (BN, C, h, w) and projections (B, N, 3, 4) to logits of the depth (BN, D, h, w).

    The intrinsics weigh the channels, as in the depth network of BEVDepth (Li et al., AAAI 2023, section 3.2), whose
    squeeze-and-excitation gets them; extrinsics do not change a depth along the optical axis. Initially all weigh 1.
    """

    def __init__(self, config: CameraBranch) -> None:
        super().__init__()
        self.image, channels = config.image, config.channels
        self.lens = Slot("camera.lens", nn.Linear(4, channels))
        gate = nn.Conv2d(channels, channels, 1)
        for parameter in gate.parameters():
            nn.init.zeros_(parameter)
        self.gate = Slot("camera.lens.gate", gate)
        self.mix = ConvBlock("camera.depth", channels, channels)
        self.head = Slot("camera.depth.output", nn.Conv2d(channels, config.depth.bins, 1))

    def forward(self, features: Tensor, image_from_reference: Tensor) -> Tensor:
        lens = torch.relu(self.lens(intrinsics(image_from_reference, self.image).flatten(0, 1)))
        weights = 2 * torch.sigmoid(self.gate(lens[:, :, None, None]))  # BN C 1 1
        logits: Tensor = self.head(self.mix(features * weights))
        return logits


def intrinsics(image_from_reference: Tensor, image: Image) -> Tensor:
    """(..., 4) fx, fy, cx, cy of projections (..., 3, 4), in widths and heights of the image; 0 for a missing camera.

    The left 3x3 part of a projection is K R S^-1, with a similarity S of the reference frame. Its rows a1, a2, a3,
    divided by |a3| to undo the scale of S, give cx = a1 a3, cy = a2 a3, fx^2 = |a1|^2 - cx^2, fy^2 = |a2|^2 - cy^2
    (Hartley and Zisserman, Multiple view geometry, 2003, section 6.2.4, without skew). Focal lengths are positive, also
    of a mirrored image.
    """
    x, y, z = image_from_reference[..., :3].unbind(dim=-2)
    length = z.square().sum(dim=-1, keepdim=True).clamp(min=1e-12).sqrt()
    # Sums of products instead of matrix products, which mixed precision would compute in half precision.
    x, y, z = x / (length * image.width), y / (length * image.height), z / length
    cx, cy = (x * z).sum(dim=-1), (y * z).sum(dim=-1)
    fx, fy = ((a.square().sum(dim=-1) - c.square()).clamp(min=0).sqrt() for a, c in ((x, cx), (y, cy)))
    return torch.stack([fx, fy, cx, cy], dim=-1)
