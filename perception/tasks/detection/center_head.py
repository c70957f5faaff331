"""CenterPoint's detection head (Yin et al., 2021): objects as peaks of BEV heatmaps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perception.grid import BevGrid
from perception.layers import ConvBlock
from perception.modules.slot import Slot
from perception.tasks.detection.attributes_by_speed import by_speed
from perception.tasks.detection.config import DetectionHead
from perception.tasks.detection.iou_score import iou_loss, rectified
from perception.tasks.detection.losses import REGRESSION, center_losses
from perception.tasks.network import Loss, TaskNetwork
from perception.taxonomy import Taxonomy


class CenterHead(TaskNetwork):
    """(B, C, rows, columns) -> heatmap of each class, and at every cell the box of an object centred there.

    Each group of classes has its own branches and outputs.
    """

    possible: Tensor

    def __init__(self, config: DetectionHead, inputs: int, grid: BevGrid, taxonomy: Taxonomy) -> None:
        super().__init__()
        self.grid, self.config, self.taxonomy = grid, config, taxonomy
        self.shared = ConvBlock("heads.detection", inputs, config.channels)
        self.branches = nn.ModuleDict()
        for i, group in enumerate(config.groups):
            for name, n in {"heatmap": len(group), **self.regressed}.items():
                own = map_name(config, name, i)
                hidden = ConvBlock(f"heads.detection.{own}", config.channels, config.channels)
                last = nn.Conv2d(config.channels, n, config.output_kernel, padding=config.output_kernel // 2)
                self.branches[own] = nn.Sequential(hidden, Slot(f"heads.detection.{own}.output", last))
                if name == "heatmap":  # start at p = 0.01 (RetinaNet, Lin et al. 2017)
                    nn.init.constant_(last.bias, -math.log((1 - 0.01) / 0.01))  # type: ignore[arg-type]
        possible = [taxonomy.possible_attributes(label) for label in range(len(taxonomy.classes))]
        self.register_buffer("possible", torch.tensor(possible), persistent=False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.shared(x)
        return {name: branch(x) for name, branch in self.branches.items()}

    def losses(self, dense: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> dict[str, Loss]:
        losses = center_losses(joined(self.config, dense), labels, self.config.weights)
        if self.config.iou:
            groups = [
                {name: dense[map_name(self.config, name, i)] for name in self.regressed}
                for i in range(len(self.config.groups))
            ]
            losses["iou"] = iou_loss(groups, labels, self.config.weights.iou, self.grid.cell)
        return losses

    def decode(self, dense: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The K best peaks of the heatmaps: boxes (B, K, 10), scores, labels and attributes (B, K); part of the graph.

        A box is x, y, z (m), width, length, height (m), sine and cosine of the yaw, and the velocity (m/s), in the
        grid's reference frame. Sine and cosine are not normalised, which would amplify the rounding errors of short
        ones.

        With several groups each gives its K best: (B, groups, K, 10) and (B, groups, K). With NMS after the engine, all
        cells are peaks.
        """

        def gathered(group: int, cell: Tensor) -> dict[str, Tensor]:
            maps = {
                name: dense[map_name(self.config, name, group)].flatten(2).transpose(1, 2) for name in self.regressed
            }
            return {n: m.gather(1, cell[..., None].expand(-1, -1, m.shape[-1])) for n, m in maps.items()}

        return self.boxes(dense, gathered)

    def boxes(
        self, dense: Mapping[str, Tensor], regress: Callable[[int, Tensor], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """The result of `decode` from the heatmaps among the dense outputs.

        Args:
            regress: returns the regression outputs, each of `regressed` (B, K, n), for the index of a group and its
                cells (B, K), row * columns + column.
        """
        groups, first = [], 0
        for i, group in enumerate(self.config.groups):
            groups.append(self._best(dense[map_name(self.config, "heatmap", i)], first, partial(regress, i)))
            first += len(group)
        if len(groups) == 1:
            return groups[0]
        return {name: torch.stack([group[name] for group in groups], dim=1) for name in groups[0]}

    @property
    def regressed(self) -> dict[str, int]:
        """Regression outputs at a cell, with their numbers of channels."""
        iou = {"iou": 1} if self.config.iou else {}
        return REGRESSION | iou | ({"attribute": len(self.taxonomy.attributes)} if self.learns_attributes else {})

    @property
    def learns_attributes(self) -> bool:
        return self.config.attributes == "learned" and bool(self.taxonomy.attributes)

    def _best(self, heatmap: Tensor, first: int, regress: Callable[[Tensor], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The best peaks of one group, whose classes have the labels from `first` on."""
        scores = heatmap.sigmoid()  # B n rows columns
        if self.config.suppression is None:
            scores = scores * (scores == F.max_pool2d(scores, 3, stride=1, padding=1)).to(scores.dtype)
        rows, columns = self.grid.shape
        best, index = scores.flatten(1).topk(min(self.config.top_k, scores[0].numel()))  # B K
        label = torch.div(index, rows * columns, rounding_mode="floor")
        cell = index - label * (rows * columns)
        label = label + first if first else label
        at = regress(cell)

        row = torch.div(cell, columns, rounding_mode="floor")
        corner = torch.stack([cell - row * columns, row], dim=-1).to(scores.dtype)
        origin = corner.new_tensor([self.grid.x[0], self.grid.y[0]])
        center = (corner + at["offset"]) * self.grid.cell + origin
        size = at["size"].clamp(-5, 5).exp()
        velocity = at["velocity"]
        boxes = torch.cat([center, at["height"], size, at["heading"], velocity], dim=-1)
        if self.learns_attributes:
            possible = self.possible[label]  # B K attributes
            attribute = torch.where(possible, at["attribute"], -1e4).argmax(dim=-1)
            attribute = torch.where(possible.any(dim=-1), attribute, -1)
        else:
            attribute = by_speed(label, velocity, self.taxonomy)
        found = {"boxes": boxes, "scores": best, "labels": label, "attributes": attribute}
        return rectified(found, at["iou"], self.config.iou) if self.config.iou else found


def map_name(config: DetectionHead, name: str, group: int) -> str:
    """Name of a group's branch and dense output; without the group's index if there is only one group."""
    return name if len(config.groups) == 1 else f"group{group}_{name}"


def joined(config: DetectionHead, dense: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The dense outputs of all groups, concatenated under one name each.

    Returns:
        heatmap (B, classes, rows, columns), and the others (B, groups * n, rows, columns).
    """
    parts: dict[str, list[Tensor]] = {}
    for i in range(len(config.groups)):
        for name in ("heatmap", *REGRESSION, "attribute"):
            if (own := map_name(config, name, i)) in dense:
                parts.setdefault(name, []).append(dense[own])
    return {name: torch.cat(maps, dim=1) for name, maps in parts.items()}
