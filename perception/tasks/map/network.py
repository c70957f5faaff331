"""Map segmentation in the bird's-eye view: which of the six map classes covers each cell."""

from __future__ import annotations

from torch import Tensor, nn

from perception.config import MapHead
from perception.frame import MAP_CLASSES
from perception.layers import ConvBlock
from perception.modules.slot import Slot


class MapSegmentationHead(nn.Module):
    """(B, C, rows, columns) -> logits (B, 6, rows, columns); classes overlap, so that each has its own sigmoid."""

    def __init__(self, config: MapHead, inputs: int) -> None:
        super().__init__()
        self.shared = ConvBlock("heads.map", inputs, config.channels)
        self.logits = Slot("heads.map.output", nn.Conv2d(config.channels, len(MAP_CLASSES), 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"map_logits": self.logits(self.shared(x))}

    def decode(self, dense: dict[str, Tensor]) -> dict[str, Tensor]:
        """Probabilities of the map classes."""
        return {"map": dense["map_logits"].sigmoid()}
