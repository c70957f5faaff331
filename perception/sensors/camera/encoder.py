"""Camera branch: image features with a depth distribution for each feature cell."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from perception.config import CameraBranch
from perception.errors import InputError
from perception.layers import ConvBlock, add_slots
from perception.modules.slot import Slot
from perception.sensors.camera.depth_loss import depth_loss
from perception.sensors.camera.lens import LensDepth
from perception.tasks.network import Loss


class ImageEncoder(nn.Module):
    """timm backbone, feature pyramid (Lin et al., 2017), and a head for context and depth (LSS, Philion 2020).

    The pyramid's finest level gives the output: (B, N, H, W, 3) uint8 images become context (B, N, C, h, w) and
    logits of the depth (B, N, D, h, w), with h = H / stride of that level.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, config: CameraBranch) -> None:
        super().__init__()
        self.channels, self.depth, self.image = config.channels, config.depth, config.image
        try:
            self.backbone = timm.create_model(
                config.backbone, pretrained=False, features_only=True, out_indices=config.stages
            )
        except RuntimeError as error:
            raise InputError(f"model.camera.backbone: {error}") from None
        if config.weights is not None:
            self._load(Path(config.weights))
        backbone: Any = self.backbone
        add_slots(backbone, "camera.backbone")
        inputs = backbone.feature_info.channels()
        self.lateral = nn.ModuleList(
            ConvBlock(f"camera.lateral{i}", c, config.channels, kernel=1) for i, c in enumerate(inputs)
        )
        self.smooth = ConvBlock("camera.neck", config.channels, config.channels)
        # One convolution gives context and depth, unless the depth has layers of its own.
        self.lens_depth = LensDepth(config) if config.depth.intrinsics else None
        outputs = config.channels + (0 if config.depth.intrinsics else config.depth.bins)
        self.head = Slot("camera.output", nn.Conv2d(config.channels, outputs, 1))
        self.register_buffer("mean", torch.tensor([123.675, 116.28, 103.53]), persistent=False)  # ImageNet, RGB
        self.register_buffer("deviation", torch.tensor([58.395, 57.12, 57.375]), persistent=False)

    def _load(self, path: Path) -> None:
        try:
            state = load_file(path)
        except (OSError, ValueError) as error:
            raise InputError(f"model.camera.weights: cannot read {path}: {error}") from None
        absent = self.backbone.load_state_dict(state, strict=False).missing_keys
        if absent:
            raise InputError(f"model.camera.weights: {path} lacks {len(absent)} tensors, such as {absent[0]}")

    def forward(self, images: Tensor, image_from_reference: Tensor) -> tuple[Tensor, Tensor]:
        b, n = images.shape[:2]
        x = images.flatten(0, 1).to(self.mean.dtype).permute(0, 3, 1, 2)  # BN 3 H W
        levels = self.backbone((x - self.mean[:, None, None]) / self.deviation[:, None, None])
        x = self.lateral[-1](levels[-1])
        for level, lateral in zip(levels[-2::-1], list(self.lateral)[-2::-1], strict=True):
            x = lateral(level) + F.interpolate(x, size=level.shape[-2:], mode="nearest")
        x = self.smooth(x)
        if self.lens_depth is None:
            context, logits = self.head(x).unflatten(0, (b, n)).split([self.channels, self.depth.bins], dim=2)
            return context, logits
        return self.head(x).unflatten(0, (b, n)), self.lens_depth(x, image_from_reference).unflatten(0, (b, n))

    def supervised_cells(self) -> tuple[int, int] | None:
        """(h, w) of the cells that need depth labels; None if the depth is not supervised, or nothing here trains.

        Raises:
            InputError: the image is no whole number of cells.
        """
        if not self.depth.supervision or not any(parameter.requires_grad for parameter in self.parameters()):
            return None
        backbone: Any = self.backbone
        stride, size = backbone.feature_info.reduction()[0], self.image
        if size.height % stride or size.width % stride:
            raise InputError(
                f"model.camera.image: {size.height} x {size.width} is no multiple of {stride}, the size of a feature "
                "cell, which depth supervision needs"
            )
        return size.height // stride, size.width // stride

    def losses(self, dense: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> dict[str, Loss]:
        """The loss of `depth`: logits (B, N, D, h, w) against labels (B, N, h, w) as in `depth_labels`."""
        return {"depth": depth_loss(dense["depth"], labels["depth"], self.depth)}
