"""Map segmentation head in BEV."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional as F

from perception.loss import Loss
from perception.modules.slot import ConvBlock, Slot
from perception.tasks.network import TaskNetwork


class MapSegmentationHead(TaskNetwork):
    """(B, C, rows, columns) -> logits (B, layers, rows, columns), independent for each, because layers overlap."""

    def __init__(self, inputs: int, channels: int, layers: int, weight: float) -> None:
        super().__init__()
        self.weight = weight
        self.shared = ConvBlock("heads.map", inputs, channels)
        self.logits = Slot("heads.map.output", nn.Conv2d(channels, layers, 1))

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        return {"logits": self.logits(self.shared(features))}

    def decode(self, dense: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"probabilities": dense["logits"].sigmoid()}

    def losses(self, dense: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> dict[str, Loss]:
        """Binary cross-entropy: mean over cells and classes of each frame whose location has a map."""
        entropy = F.binary_cross_entropy_with_logits(
            dense["logits"], labels["cells"].to(dense["logits"]), reduction="none"
        )
        each = self.weight * entropy.mean(dim=(1, 2, 3))
        return {"cells": Loss(each.where(labels["known"], 0.0), labels["known"])}
