"""CenterPoint's detection head (Yin et al., 2021): objects as peaks of BEV heatmaps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perception.grid import BevGrid
from perception.layers import ConvBlock
from perception.modules.slot import Slot
from perception.tasks.detection.attributes_by_speed import by_speed
from perception.tasks.detection.config import DetectionHead
from perception.tasks.detection.headings import AXIS, along_axis
from perception.tasks.detection.iou_score import iou_loss, rectified
from perception.tasks.detection.layout import Heatmap, heatmaps_of, map_name
from perception.tasks.detection.losses import REGRESSION, center_losses
from perception.tasks.network import Axis, Loss, TaskNetwork
from perception.taxonomy import Taxonomy

_SLACK = 1.0  # subcells beyond its own that the centre of a peak's object may be


class CenterHead(TaskNetwork):
    """(B, C, rows, columns) -> heatmap of each class, and at every cell the box of an object centred there.

    Each group of classes has its own branches and outputs. The heatmaps of classes with subcells have several values
    for each cell (sub-pixel convolution, Shi et al., 2016), so that neighbours in a crowd have peaks of their own; the
    regression is that of the whole cell.
    """

    possible: Tensor

    def __init__(self, config: DetectionHead, inputs: int, grid: BevGrid, taxonomy: Taxonomy) -> None:
        super().__init__()
        self.grid, self.config, self.taxonomy = grid, config, taxonomy
        self.shared = ConvBlock("heads.detection", inputs, config.channels)
        self.branches = nn.ModuleDict()
        self.heatmaps = heatmaps_of(config)
        for i in range(len(config.groups)):
            values = sum(len(each.labels) * each.subcells**2 for each in self.heatmaps if each.group == i)
            for name, n in {"heatmap": values, **self.regressed}.items():
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
        regressed = {name: branch(x) for name, branch in self.branches.items() if not name.endswith("heatmap")}
        return self.heat(x) | regressed

    def heat(self, x: Tensor) -> dict[str, Tensor]:
        """The heatmaps of all groups, from the shared features."""
        dense = {}
        for i in range(len(self.config.groups)):
            own = [each for each in self.heatmaps if each.group == i]
            values = self.branches[map_name(self.config, "heatmap", i)](x)
            parts = values.split([len(each.labels) * each.subcells**2 for each in own], dim=1)
            for each, part in zip(own, parts, strict=True):
                dense[each.name] = part if each.subcells == 1 else F.pixel_shuffle(part, each.subcells)
        return dense

    def losses(self, dense: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> dict[str, Loss]:
        losses = center_losses(dense, labels, self.config)
        if self.config.iou:
            groups = [
                {name: dense[map_name(self.config, name, i)] for name in self.regressed}
                for i in range(len(self.config.groups))
            ]
            losses["iou"] = iou_loss(groups, labels, self.config.weights.iou, self.grid.cell)
        return losses

    def unflipped(self, dense: Mapping[str, Tensor], axis: Axis) -> dict[str, Tensor]:
        """As in TaskNetwork; offsets count from a cell's other side, headings and velocities change their signs."""
        maps, own = super().unflipped(dense, axis), 0 if axis == "x" else 1
        for name, value in maps.items():
            quantity = name.rpartition("_")[2]
            # The mirror image in x has the heading (sin, -cos), that in y (-sin, cos), and both the axis (-sin, cos).
            channel = {"heading": 1 - own, "axis": 0}.get(quantity, own)
            if quantity in ("offset", "heading", "axis", "velocity"):
                changed = value.clone()
                changed[:, channel] = 1 - value[:, channel] if quantity == "offset" else -value[:, channel]
                maps[name] = changed
        return maps

    def decode(self, dense: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The K best peaks of the heatmaps: boxes (B, K, 10), scores, labels and attributes (B, K); part of the graph.

        A box is x, y, z (m), width, length, height (m), sine and cosine of the yaw, and the velocity (m/s), in the
        grid's reference frame. Sine and cosine are not normalised, which would amplify the rounding errors of short
        ones.

        With several groups each gives its K best: (B, groups, K, 10) and (B, groups, K). Without `peaks` all cells
        are candidates, for NMS after the engine.
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
        groups = [self._best(i, dense, partial(regress, i)) for i in range(len(self.config.groups))]
        if len(groups) == 1:
            return groups[0]
        return {name: torch.stack([group[name] for group in groups], dim=1) for name in groups[0]}

    @property
    def regressed(self) -> dict[str, int]:
        """Regression outputs at a cell, with their numbers of channels."""
        iou = {"iou": 1} if self.config.iou else {}
        return (
            REGRESSION
            | (AXIS if self.config.axis else {})
            | iou
            | ({"attribute": len(self.taxonomy.attributes)} if self.learns_attributes else {})
        )

    @property
    def learns_attributes(self) -> bool:
        return self.config.attributes == "learned" and bool(self.taxonomy.attributes)

    def _best(
        self, group: int, dense: Mapping[str, Tensor], regress: Callable[[Tensor], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """The best peaks of one group."""
        own = [each for each in self.heatmaps if each.group == group]
        scores = torch.cat([self._scores(dense[each.name]) for each in own], dim=1)
        best, index = scores.topk(min(self.config.top_k, scores.shape[1]))  # B K
        label, subcells, within = self._classes(own, index)

        columns = self.grid.shape[1]
        row = torch.div(within, subcells * columns, rounding_mode="floor")
        column = within - row * (subcells * columns)
        cell_row = torch.div(row, subcells, rounding_mode="floor")
        cell_column = torch.div(column, subcells, rounding_mode="floor")
        at = regress(cell_row * columns + cell_column)

        place = torch.stack([cell_column, cell_row], dim=-1).to(scores.dtype) + at["offset"]
        if any(each.subcells > 1 for each in own):
            # Two objects in one cell share its regression: each stays near its own subcell.
            corner, size = torch.stack([column, row], dim=-1).to(scores.dtype), subcells[..., None].to(scores.dtype)
            near = (place * size - corner).clamp(-_SLACK, 1 + _SLACK)
            place = torch.where(size > 1, (corner + near) / size, place)
        center = place * self.grid.cell + place.new_tensor([self.grid.x[0], self.grid.y[0]])
        size = at["size"].clamp(-5, 5).exp()
        velocity = at["velocity"]
        heading = along_axis(at["heading"], at["axis"]) if self.config.axis else at["heading"]
        boxes = torch.cat([center, at["height"], size, heading, velocity], dim=-1)
        if self.learns_attributes:
            possible = self.possible[label]  # B K attributes
            attribute = torch.where(possible, at["attribute"], -1e4).argmax(dim=-1)
            attribute = torch.where(possible.any(dim=-1), attribute, -1)
        else:
            attribute = by_speed(label, velocity, self.taxonomy)
        found = {"boxes": boxes, "scores": best, "labels": label, "attributes": attribute}
        return rectified(found, at["iou"], self.config.iou) if self.config.iou else found

    def _scores(self, heatmap: Tensor) -> Tensor:
        """(B, classes * rows * columns) of a heatmap; zero where no box may be."""
        scores = heatmap.sigmoid()
        if self.config.only_peaks:
            scores = scores * (scores == F.max_pool2d(scores, 3, stride=1, padding=1)).to(scores.dtype)
        return scores.flatten(1)

    def _classes(self, maps: Sequence[Heatmap], index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Label, subcells and cell in the heatmap of its class (B, K), for positions in `maps` one after the other."""
        classes = [(label, each.subcells) for each in maps for label in each.labels]
        cells = [size * size * self.grid.cells for _, size in classes]
        starts = index.new_tensor([sum(cells[:i]) for i in range(len(cells))])
        position = (index[..., None] >= starts[1:]).sum(dim=-1)  # of the class in `classes`
        label, subcells = (index.new_tensor(column)[position] for column in zip(*classes, strict=True))
        return label, subcells, index - starts[position]
