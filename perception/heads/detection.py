"""Detection of objects as peaks in the bird's-eye view (CenterPoint, Yin et al., 2021)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perception.backbone.layers import ConvBlock
from perception.config import DetectionHead
from perception.frame import ATTRIBUTES, CLASSES
from perception.grid import BevGrid
from perception.modules.slot import Slot

# What is regressed at an object's cell, and in how many numbers.
REGRESSION = {
    "offset": 2,  # of the centre from the cell's corner, in cells
    "height": 1,  # of the centre, m
    "size": 3,  # logarithm of width, length, height in m
    "heading": 2,  # sine and cosine of the yaw
    "velocity": 2,  # m/s
}
# Which attributes a class can have, by the word that their names begin with.
ATTRIBUTE_FAMILY = {
    "pedestrian": "pedestrian.",
    "motorcycle": "cycle.",
    "bicycle": "cycle.",
    "barrier": "-",
    "traffic_cone": "-",
}


class CenterHead(nn.Module):
    """(B, C, rows, columns) -> heat map of each class and, at every cell, the box of the object centred there."""

    possible: Tensor

    def __init__(self, config: DetectionHead, inputs: int, grid: BevGrid) -> None:
        super().__init__()
        self.grid, self.top_k = grid, config.top_k
        self.shared = ConvBlock("heads.detection", inputs, config.channels)
        outputs = {"heatmap": len(CLASSES), **REGRESSION, "attribute": len(ATTRIBUTES)}
        self.branches = nn.ModuleDict(
            {
                name: nn.Sequential(
                    ConvBlock(f"heads.detection.{name}", config.channels, config.channels),
                    Slot(f"heads.detection.{name}.output", nn.Conv2d(config.channels, n, 1)),
                )
                for name, n in outputs.items()
            }
        )
        final = self.branches["heatmap"][1]  # type: ignore[index]
        nn.init.constant_(
            final.layer.bias, -math.log((1 - 0.01) / 0.01)
        )  # start at p = 0.01 (RetinaNet, Lin et al. 2017)
        families = [ATTRIBUTE_FAMILY.get(c, "vehicle.") for c in CLASSES]
        possible = torch.tensor([[a.startswith(f) for a in ATTRIBUTES] for f in families])
        self.register_buffer("possible", possible, persistent=False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.shared(x)
        return {name: branch(x) for name, branch in self.branches.items()}

    def decode(self, dense: dict[str, Tensor]) -> dict[str, Tensor]:
        """The K best peaks of the heat maps, in the graph: boxes (B, K, 10), scores, labels and attributes (B, K).

        A box is x, y, z (m), width, length, height (m), sine and cosine of the yaw, and the velocity (m/s), in the
        grid's reference frame. Sine and cosine are as regressed, so their squares need not sum to 1: to normalise
        here would blow up the rounding errors of short ones.
        """
        scores = dense["heatmap"].sigmoid()  # B 10 rows columns
        peaks = scores * (scores == F.max_pool2d(scores, 3, stride=1, padding=1)).to(scores.dtype)
        rows, columns = self.grid.shape
        best, index = peaks.flatten(1).topk(self.top_k)  # B K
        label = torch.div(index, rows * columns, rounding_mode="floor")
        cell = index - label * (rows * columns)

        def at(name: str) -> Tensor:  # B K n
            values = dense[name].flatten(2).transpose(1, 2)
            return values.gather(1, cell[..., None].expand(-1, -1, values.shape[-1]))

        row = torch.div(cell, columns, rounding_mode="floor")
        corner = torch.stack([cell - row * columns, row], dim=-1).to(scores.dtype)
        origin = corner.new_tensor([self.grid.x[0], self.grid.y[0]])
        center = (corner + at("offset")) * self.grid.cell + origin
        size = at("size").clamp(-5, 5).exp()
        boxes = torch.cat([center, at("height"), size, at("heading"), at("velocity")], dim=-1)
        possible = self.possible[label]  # B K 8
        attribute = torch.where(possible, at("attribute"), -1e4).argmax(dim=-1)
        attribute = torch.where(possible.any(dim=-1), attribute, -1)
        return {"boxes": boxes, "scores": best, "labels": label, "attributes": attribute}
