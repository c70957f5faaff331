"""Detection head with anchors (SECOND, Yan et al., 2018; PointPillars, Lang et al., 2019)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from perception.errors import InputError
from perception.modules.slot import Slot
from perception.tasks.detection.anchor_losses import anchor_losses
from perception.tasks.detection.anchors import of_a_cell
from perception.tasks.detection.attributes_by_speed import by_speed
from perception.tasks.detection.config import AnchorHead as AnchorHeadConfig
from perception.tasks.network import Axis, Loss, TaskNetwork
from perception.taxonomy import Taxonomy


class AnchorHead(TaskNetwork):
    """Feature maps (B, C, rows, columns), one for each level -> class and box for each of A anchors at every cell.

    On level i the anchors are `scales[i]` times as large; all levels share the layers. The dense outputs of level i are
    classes.i (B, A * classes, rows, columns), boxes.i (B, A * 9 or 7, ...) and directions.i (B, A * 2, ...).

    Args:
        taxonomy: of the classes of this head alone.
        slots: what the names of its slots begin with.
    """

    def __init__(
        self, config: AnchorHeadConfig, inputs: int, taxonomy: Taxonomy, slots: str = "heads.detection"
    ) -> None:
        super().__init__()
        self.config, self.taxonomy, self.count = config, taxonomy, len(taxonomy.classes)
        anchors = len(config.anchors) * len(config.rotations)
        self.branches = nn.ModuleDict(
            {
                name: Slot(f"{slots}.{name}", nn.Conv2d(inputs, anchors * n, 1))
                for name, n in {"classes": self.count, "boxes": config.code, "directions": 2}.items()
            }
        )
        classes: Slot = self.branches["classes"]  # type: ignore[assignment]
        nn.init.constant_(classes.layer.bias, -math.log((1 - 0.01) / 0.01))  # start at p = 0.01, as in CenterHead

    def forward(self, levels: Tensor | list[Tensor]) -> dict[str, Tensor]:
        levels = [levels] if isinstance(levels, Tensor) else levels
        return {f"{name}.{i}": branch(x) for i, x in enumerate(levels) for name, branch in self.branches.items()}

    def losses(self, dense: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> dict[str, Loss]:
        return anchor_losses(self.config, dense, labels)

    def unflipped(self, dense: Mapping[str, Tensor], axis: Axis) -> dict[str, Tensor]:
        raise InputError("tasks.detection: a head with anchors cannot average mirror images; evaluate without --flip")

    def decode(self, dense: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Boxes (B, classes, K, 10), scores, labels and attributes (B, classes, K) as in CenterHead; part of the graph.

        Candidates are the boxes of each level with the highest scores of their best class. Each class has all of them,
        best first, with score 0 if below the threshold. NMS follows after the engine.
        """
        parts = [
            self._candidates(dense[f"classes.{i}"], dense[f"boxes.{i}"], dense[f"directions.{i}"], i)
            for i in range(len(self.config.scales))
        ]
        boxes, scores = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
        # An empty street scores the same everywhere: which of it is among the candidates must not matter.
        scores = torch.where(scores > self.config.suppression.threshold, scores, 0.0)
        scores, order = scores.transpose(1, 2).topk(scores.shape[1])  # B classes K
        boxes = boxes[:, None].expand(-1, self.count, -1, -1)
        boxes = boxes.gather(2, order[..., None].expand_as(boxes))
        # Computed from the order, because a graph cannot give a constant.
        most = scores.shape[-1]
        labels = torch.div(order + most * torch.arange(self.count)[:, None].to(order), most, rounding_mode="floor")
        return {
            "boxes": boxes,
            "scores": scores,
            "labels": labels,
            "attributes": by_speed(labels, boxes[..., 8:10], self.taxonomy),
        }

    def _candidates(self, classes: Tensor, codes: Tensor, directions: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Boxes (B, K, 10) of one level, and their scores (B, K, classes)."""
        rows, columns = classes.shape[-2:]
        scores = classes.sigmoid()
        best = scores.flatten(2).unflatten(1, (-1, self.count)).amax(dim=2).flatten(1)  # B A * cells
        _, index = best.topk(min(self.config.candidates, best.shape[1]))
        anchor = torch.div(index, rows * columns, rounding_mode="floor")
        cell = index - anchor * (rows * columns)

        def at(values: Tensor, n: int) -> Tensor:  # B K n
            first = anchor * (n * rows * columns) + cell
            places = first[..., None] + torch.arange(n, device=first.device) * (rows * columns)
            return values.flatten(1).gather(1, places.flatten(1)).unflatten(1, (-1, n))

        code, direction = at(codes, self.config.code), at(directions, 2).argmax(dim=-1)
        own = of_a_cell(self.config, level, rows, columns).to(code)[anchor]  # B K 9
        row = torch.div(cell, columns, rounding_mode="floor")
        place = torch.stack([cell - row * columns, row], dim=-1).to(code.dtype) + 0.5
        diagonal = own[..., 5:7].square().sum(dim=-1, keepdim=True).sqrt()
        center = own[..., 0:2] + place * own[..., 2:4] + code[..., 0:2] * diagonal
        z = own[..., 4:5] + (code[..., 2:3] + 0.5) * own[..., 7:8]
        size = own[..., 5:8] * code[..., 3:6].exp()
        yaw = self._turned(own[..., 8] + code[..., 6], direction)[..., None]
        velocity = code[..., 7:9] if self.config.velocity else torch.zeros_like(center)
        boxes = torch.cat([center, z, size, yaw.sin(), yaw.cos(), velocity], dim=-1)
        return boxes, at(scores, self.count)

    def _turned(self, yaw: Tensor, direction: Tensor) -> Tensor:
        """The yaw modulo pi in the half circle after the offset, plus pi where the direction is 1."""
        offset, limit = self.config.direction_offset, self.config.direction_limit_offset
        turns = ((yaw - offset) / math.pi + limit).floor()
        return yaw + math.pi * (direction.to(yaw.dtype) - turns)
