"""The head of points: a small network for each point on the BEV features at its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perception.grid import BevGrid
from perception.loss import Loss, lovasz_softmax
from perception.modules.slot import ConvBlock, Slot
from perception.tasks.network import PointFeatures, TaskNetwork

_OWN = 7  # features of a point itself


class PointSegmentationHead(TaskNetwork):
    """`PointFeatures` -> logits (B, K, classes), and `real` (B, K): 1 for points, 0 for padding.

    A linear layer on a point's own features and those of the feature map at its place, computed as a sum of two, so
    that the map's part is computed once for each cell, then two more layers for each point. Points outside the grid
    have their own features only.
    """

    scale: Tensor
    weights: Tensor

    def __init__(self, inputs: int, channels: int, grid: BevGrid, weights: Sequence[float], weight: float) -> None:
        super().__init__()
        self.weight, self.grid = weight, grid
        self.shared = ConvBlock("heads.points", inputs, channels, kernel=1)
        self.cell = Slot("heads.points.cell", nn.Conv2d(channels, channels, 3, padding=1))
        self.own = Slot("heads.points.own", nn.Linear(_OWN, channels))
        self.hidden = Slot("heads.points.hidden", nn.Linear(channels, channels))
        self.output = Slot("heads.points.output", nn.Linear(channels, len(weights)))
        far, high = (max(abs(value) for value in values) for values in ((*grid.x, *grid.y), grid.z))
        self.register_buffer("scale", torch.tensor([1 / far, 1 / far, 1 / high, 1 / 255]), persistent=False)
        self.register_buffer("weights", torch.tensor(weights), persistent=False)

    def forward(self, features: PointFeatures) -> dict[str, Tensor]:
        cells, points = self.cell(self.shared(features.features)), features.points
        place = (points[..., :2] - points.new_tensor([self.grid.x[0], self.grid.y[0]])) / self.grid.cell
        rows, columns = self.grid.shape
        inside = (features.cells < rows * columns).to(cells.dtype)[..., None]
        x = (self._sample(cells, place) * inside).flatten(0, 1) + self.own(
            self._features_of_points(points, place).flatten(0, 1)
        )
        x = torch.relu(self.hidden(torch.relu(x)))
        real = (points.abs().amax(dim=2) > 0).to(points.dtype)
        return {"logits": self.output(x).unflatten(0, points.shape[:2]), "real": real}

    def _sample(self, maps: Tensor, place: Tensor) -> Tensor:
        """(B, K, C) bilinear interpolation of maps (B, C, rows, columns) at column and row (B, K, 2), in cells from the
        corner."""
        rows, columns = self.grid.shape
        at = (place + 1) * place.new_tensor([2 / (columns + 2), 2 / (rows + 2)]) - 1  # from edge to edge
        # ONNX Runtime is slow with padding_mode="border".
        maps = F.pad(maps, (1, 1, 1, 1), mode="replicate")
        return F.grid_sample(maps, at[:, None], align_corners=False).squeeze(2).transpose(1, 2)

    def _features_of_points(self, points: Tensor, place: Tensor) -> Tensor:
        """(B, K, 7): x, y, z and intensity, scaled to about 1; distance; offset from the centre of its cell."""
        scaled = points[..., :4] * self.scale
        distance = scaled[..., :2].square().sum(dim=-1, keepdim=True).sqrt()
        return torch.cat([scaled, distance, place - place.floor() - 0.5], dim=-1)

    def decode(self, dense: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The likeliest class of each point, and its probability; 0 for padding."""
        probabilities, real = dense["logits"].softmax(dim=2), dense["real"]
        classes = probabilities.argmax(dim=2).to(real.dtype) * real  # TensorRT makes bytes of floats only
        return {"classes": classes.to(torch.uint8), "confidence": (probabilities.amax(dim=2) * real)[:, None]}

    def losses(self, dense: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> dict[str, Loss]:
        """Weighted cross-entropy and Lovasz-softmax over the annotated points of each frame."""
        entropy, lovasz = [], []
        for logits, classes in zip(dense["logits"], labels["classes"].long(), strict=True):
            known = classes >= 0
            logits, classes = logits[known], classes[known]
            weights = self.weights.to(logits.dtype)
            total = F.cross_entropy(logits, classes, weights, reduction="sum")
            entropy.append(self.weight * total / weights[classes].sum().clamp(min=1e-6))
            lovasz.append(self.weight * lovasz_softmax(logits.softmax(dim=1), classes))
        frames = (labels["classes"] >= 0).any(dim=1)
        return {"entropy": Loss(torch.stack(entropy), frames), "lovasz": Loss(torch.stack(lovasz), frames)}
