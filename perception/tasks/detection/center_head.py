"""CenterPoint's head (Yin et al., 2021): objects as peaks of BEV heatmaps; network and decoding."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from perception.grid import BevGrid
from perception.loss import Loss
from perception.modules.slot import ConvBlock, Slot
from perception.tasks.detection.config import DetectionHead, Heatmap, IouScore, heatmaps_of, map_name
from perception.tasks.detection.submission import MOVING_SPEED
from perception.tasks.detection.targets import AXIS, REGRESSION, along_axis, center_losses, iou_loss
from perception.tasks.network import TaskNetwork
from perception.taxonomy import Taxonomy


def rectify(found: Mapping[str, Tensor], logits: Tensor, config: IouScore) -> dict[str, Tensor]:
    """Detections with the score heatmap^(1 - beta) * IoU^beta, best first; part of the graph.

    The predicted IoU tells how well a box fits: CIA-SSD (Zheng et al., 2021), PillarNeSt (Mao et al., 2024).

    Args:
        found: boxes (B, K, n), scores, the values of the heatmap, labels and attributes (B, K).
        logits: (B, K, 1) of the IoU.
    """
    heat = found["scores"]
    scores = heat ** (1 - config.beta) * logits[..., 0].sigmoid() ** config.beta
    scores = torch.where(heat > config.threshold, scores, torch.zeros_like(scores))
    scores, order = scores.topk(scores.shape[-1])
    others = {name: found[name].gather(1, order) for name in ("labels", "attributes")}
    boxes = found["boxes"].gather(1, order[..., None].expand(-1, -1, found["boxes"].shape[-1]))
    return {"boxes": boxes, "scores": scores, **others}


def by_speed(labels: Tensor, velocities: Tensor, taxonomy: Taxonomy) -> Tensor:
    """(...) indices of the default attributes at velocities (..., 2) m/s; -1 for classes without any."""
    at_rest, in_motion = labels.new_tensor(taxonomy.default_attributes()).T[:, labels]
    return in_motion.where(velocities.square().sum(dim=-1) > MOVING_SPEED**2, at_rest)


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
        """As `decode`, by `regress`: index of a group, and cells (B, K) -> each of `regressed` (B, K, n)."""
        groups = [self._best_peaks(i, dense, partial(regress, i)) for i in range(len(self.config.groups))]
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

    def _best_peaks(
        self, group: int, dense: Mapping[str, Tensor], regress: Callable[[Tensor], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
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
        return rectify(found, at["iou"], self.config.iou) if self.config.iou else found

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


class PeakHead(nn.Module):
    """A trained CenterHead for inference: heatmaps first, then the regression branches at their K best cells.

    The regression at a cell depends on a patch around it: 3 x 3 cells, or 5 x 5 if the last convolutions have 3 x 3
    kernels. So the branches run on K patches of the shared features, with all branches of a group stacked into one.
    """

    inside: Tensor

    def __init__(self, head: CenterHead) -> None:
        """Stacked weights are copies of the head's, the others are shared with it."""
        super().__init__()
        self.head = head
        self.size = head.config.output_kernel  # of the patch that the last convolutions see
        self.border = (self.size + 2) // 2  # cells around the map that patches at its edge reach into
        stacked = [_stack_branches(head, i) for i in range(len(head.config.groups))]
        self.hidden, self.last = (nn.ModuleList(layers) for layers in zip(*stacked, strict=True))
        inside = F.pad(torch.ones(head.grid.shape), (self.border,) * 4)
        self.register_buffer("inside", inside.flatten(), persistent=False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """The heatmaps, and the features (B, C, rows, columns) shared by the branches of all groups."""
        x = self.head.shared(x)
        return self.head.heat(x) | {"features": x}

    def decode(self, dense: dict[str, Tensor]) -> dict[str, Tensor]:
        features = F.pad(dense["features"], (self.border,) * 4).permute(0, 2, 3, 1)  # B rows columns C
        return self.head.boxes(dense, lambda group, cell: self._regress(group, features, cell))

    def _regress(self, group: int, features: Tensor, cell: Tensor) -> dict[str, Tensor]:
        """(B, K, n) of each regression output, from the padded features."""
        numbers = self.head.regressed
        x = torch.relu(self.hidden[group](self._patches(features, cell, self.size + 2).permute(0, 3, 1, 2)))
        if self.size > 1:
            # The last convolutions pad the map with zeros, and see nothing of what lies beyond it.
            inside = self.inside.expand(len(features), -1)[..., None].unflatten(1, features.shape[1:3])
            x = x * self._patches(inside, cell, self.size).permute(0, 3, 1, 2)
        found = self.last[group](x).reshape(*cell.shape, sum(numbers.values()))
        return dict(zip(numbers, found.split(list(numbers.values()), dim=-1), strict=True))

    def _patches(self, padded: Tensor, cell: Tensor, size: int) -> Tensor:
        """(B K, size, size, C) patches around cells (B, K) of a padded feature map (B, rows, columns, C)."""
        b, rows, columns, channels = padded.shape
        row = torch.div(cell, self.head.grid.shape[1], rounding_mode="floor")
        column = cell - row * self.head.grid.shape[1]
        first = self.border - size // 2  # of the patch around the map's first cell
        corner = (row + first) * columns + column + first
        corner = corner + torch.arange(b, device=cell.device)[:, None] * (rows * columns)
        steps = torch.arange(size, device=cell.device)
        index = corner.flatten()[:, None] + (steps[:, None] * columns + steps).flatten()  # BK size * size
        patches = padded.flatten(0, 2).index_select(0, index.flatten())
        return patches.reshape(-1, size, size, channels)


def at_peaks(head: nn.Module) -> nn.Module:
    """The head as a `PeakHead`; unchanged if it is no CenterHead or if modules at its branches need whole maps."""
    if not isinstance(head, CenterHead):
        return head
    names = [map_name(head.config, name, i) for i in range(len(head.config.groups)) for name in head.regressed]
    slots = [m for name in names for m in head.branches[name].modules() if isinstance(m, Slot)]
    if any(slot.computations or slot.stack or slot.constant is not None for slot in slots):
        return head
    return PeakHead(head).eval()


class _Stacked(nn.Module):
    """A convolution with the stacked weights of several; they are not parameters."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, layers: list[Any]) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach())
        self.register_buffer("bias", torch.cat([layer.bias for layer in layers]).detach())

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias)


def _stack_branches(head: CenterHead, group: int) -> tuple[_Stacked, _Stacked]:
    """A group's branches stacked: their first convolutions with the normalisation, and their last ones.

    The first convolutions share their input; each last one reads the output of its own first one.
    """
    branches: list[Any] = [head.branches[map_name(head.config, name, group)] for name in head.regressed]
    hidden = [fuse_conv_bn_eval(first.conv.layer, first.norm.layer) for first, _ in branches]
    last = [slot.layer for _, slot in branches]
    apart = torch.block_diag(*(layer.weight.flatten(1) for layer in last))
    return (
        _Stacked(torch.cat([layer.weight for layer in hidden]), hidden),
        _Stacked(apart.unflatten(1, (-1, *last[0].weight.shape[2:])), last),
    )
