"""Camera branch: image features with a depth distribution for each feature cell."""

from __future__ import annotations

from collections.abc import Mapping

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perception.config import CameraBranch
from perception.errors import InputError
from perception.layers import ConvBlock, add_slots
from perception.modules.slot import Slot
from perception.pretrained import picture_backbone
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
        self.config = config
        self.backbone = picture_backbone(config.backbone, config.stages)
        pictures = timm.data.resolve_model_data_config(self.backbone)
        add_slots(self.backbone, "camera.backbone")
        inputs = self.backbone.feature_info.channels()
        self.lateral = nn.ModuleList(
            ConvBlock(f"camera.lateral{i}", c, config.channels, kernel=1) for i, c in enumerate(inputs)
        )
        self.smooth = ConvBlock("camera.neck", config.channels, config.channels)
        # One convolution gives context and depth, unless the depth has layers of its own.
        self.lens_depth = LensDepth(config) if config.depth.intrinsics else None
        outputs = config.channels + (0 if config.depth.intrinsics else config.depth.bins)
        self.head = Slot("camera.output", nn.Conv2d(config.channels, outputs, 1))
        # Of RGB from 0 to 255, as the backbone's pretrained weights take it.
        for name, key in (("mean", "mean"), ("deviation", "std")):
            self.register_buffer(name, torch.tensor([255 * value for value in pictures[key]]), persistent=False)

    def load_pretrained(self) -> None:
        """Load the weights of `model.camera.weights` into the backbone; modules stay. None: nothing changes.

        Raises:
            InputError: they cannot be had, or do not fit.
        """
        if self.config.weights is not None:
            network = picture_backbone(self.config.backbone, self.config.stages, self.config.weights)
            add_slots(network, "camera.backbone")
            self.backbone.load_state_dict(network.state_dict(), strict=False)  # it lacks the modules

    def forward(self, images: Tensor, image_from_reference: Tensor) -> tuple[Tensor, Tensor]:
        b, n = images.shape[:2]
        x = images.flatten(0, 1).to(self.mean.dtype).permute(0, 3, 1, 2)  # BN 3 H W
        levels = self.backbone((x - self.mean[:, None, None]) / self.deviation[:, None, None])
        x = self.lateral[-1](levels[-1])
        for level, lateral in zip(levels[-2::-1], list(self.lateral)[-2::-1], strict=True):
            x = lateral(level) + F.interpolate(x, size=level.shape[-2:], mode="nearest")
        x = self.smooth(x)
        if self.lens_depth is None:
            both = self.head(x).unflatten(0, (b, n))
            context, logits = both.split([self.config.channels, self.config.depth.bins], dim=2)
            return context, logits
        return self.head(x).unflatten(0, (b, n)), self.lens_depth(x, image_from_reference).unflatten(0, (b, n))

    def supervised_cells(self) -> tuple[int, int] | None:
        """(h, w) of the cells that need depth labels; None if the depth is not supervised, or nothing here trains.

        Raises:
            InputError: the image is no whole number of cells.
        """
        if not self.config.depth.supervision or not any(parameter.requires_grad for parameter in self.parameters()):
            return None
        stride, size = self.backbone.feature_info.reduction()[0], self.config.image
        if size.height % stride or size.width % stride:
            raise InputError(
                f"model.camera.image: {size.height} x {size.width} is no multiple of {stride}, the size of a feature "
                "cell, which depth supervision needs"
            )
        return size.height // stride, size.width // stride

    def losses(self, dense: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> dict[str, Loss]:
        """The loss of `depth`: logits (B, N, D, h, w) against labels (B, N, h, w) as in `depth_labels`."""
        return {"depth": depth_loss(dense["depth"], labels["depth"], self.config.depth)}
