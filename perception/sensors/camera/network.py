"""Camera branch: image features with a depth distribution for each feature cell, lifted to a BEV feature map."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perception.errors import InputError
from perception.grid import BevGrid
from perception.loss import Loss
from perception.modules.slot import ConvBlock, Slot, add_slots
from perception.sensors.camera.config import CameraBranch, Depth, Image
from perception.sensors.camera.lift import Lift
from perception.sensors.camera.pretrained import picture_backbone
from perception.sensors.network import SensorNetwork


class LensDepth(nn.Module):
    """Features (BN, C, h, w) and projections (B, N, 3, 4) to logits of the depth (BN, D, h, w).

    The same object at the same distance looks larger through a longer lens, so the intrinsics weigh the channels, as in
    the depth network of BEVDepth (Li et al., AAAI 2023, section 3.2), whose squeeze-and-excitation gets them;
    extrinsics do not change a depth along the optical axis. Initially all weigh 1.
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


def depth_targets(labels: Tensor, depth: Depth) -> tuple[Tensor, Tensor, Tensor]:
    """The two bins around each depth, and the share of the second: lower, upper (int64) and share, shaped as labels.

    Bin i is centred at near + (i + 0.5) * (far - near) / bins, as in the lift. The expectation of the shares is the
    depth itself, but for the half bins at both ends, which belong to the first and last bin.
    """
    place = (labels - depth.near) / (depth.far - depth.near) * depth.bins - 0.5
    place = place.clamp(0, depth.bins - 1)
    lower = place.floor().long()
    return lower, (lower + 1).clamp(max=depth.bins - 1), place - lower


def depth_loss(logits: Tensor, labels: Tensor, depth: Depth) -> Loss:
    """Cross-entropy with the two bins around the depth (B, N, h, w) m of each labelled cell, times `depth.supervision`.

    BEVDepth takes the binary cross-entropy of the bin that holds the depth; two bins keep the depth within its bin.
    """
    lower, upper, share = (each.unsqueeze(2) for each in depth_targets(labels, depth))
    likely = logits.float().log_softmax(dim=2)
    cost = (share - 1) * likely.gather(2, lower) - share * likely.gather(2, upper)
    known = labels > 0
    sums = torch.where(known, cost.squeeze(2), 0).sum(dim=(1, 2, 3))
    return Loss(depth.supervision * sums, known.sum(dim=(1, 2, 3)))


class CameraNetwork(SensorNetwork):
    """timm backbone, feature pyramid (Lin et al., 2017), and a head for context and depth (LSS, Philion 2020).

    The pyramid's finest level gives the output: (B, N, H, W, 3) uint8 images become context (B, N, C, h, w) and
    logits of the depth (B, N, D, h, w), with h = H / stride of that level. `Lift` makes the map of them.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, config: CameraBranch, grid: BevGrid) -> None:
        super().__init__()
        self.config, self.stride = config, config.stride
        self.channels = config.channels * len(config.heights)
        self.lift = Lift(config, grid.coarser(config.stride))
        self.backbone = picture_backbone(config.backbone, config.stages)
        from timm.data import resolve_model_data_config

        pictures = resolve_model_data_config(self.backbone)
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
        """Load the weights of `model.camera.weights` into the backbone; modules stay. None: nothing changes."""
        if self.config.weights is not None:
            network = picture_backbone(self.config.backbone, self.config.stages, self.config.weights)
            add_slots(network, "camera.backbone")
            self.backbone.load_state_dict(network.state_dict(), strict=False)  # it lacks the modules

    def forward(self, inputs: Mapping[str, Tensor], training: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        images, projections = inputs["images"], inputs["image_from_reference"]
        context, logits = (self._encode_present if training else self.encode)(images, projections)
        lifted: Tensor = self.lift(context, logits.softmax(dim=2), projections)
        return lifted, {} if self.supervision() is None else {"depth": logits}

    def _encode_present(self, images: Tensor, image_from_reference: Tensor) -> tuple[Tensor, Tensor]:
        """Context and depth logits as from `encode`, which computes only the images of cameras that are present.

        A missing camera has a black image. It would cost time, and in training it would enter the running statistics.
        Without any image `encode` computes no rows, because several processes need the same parameters in a step.
        """
        current = self.head.current
        present = image_from_reference.flatten(2).any(dim=2)  # B N
        chosen = present.flatten().nonzero()[:, 0]
        with current.running(current.route.of_rows(chosen // images.shape[1])):
            encoded = self.encode(images[present][:, None], image_from_reference[present][:, None])
        context, logits = (
            rows.new_zeros(present.numel(), *rows.shape[2:])
            .index_copy(0, chosen, rows[:, 0])
            .unflatten(0, present.shape)
            for rows in encoded
        )
        return context, logits

    def encode(self, images: Tensor, image_from_reference: Tensor) -> tuple[Tensor, Tensor]:
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

    def supervision(self) -> tuple[int, int] | None:
        """(h, w) of the cells that need depth labels; None if the depth is not supervised, or nothing here trains."""
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
        return {"depth": depth_loss(dense["depth"], labels["depth"], self.config.depth)}
