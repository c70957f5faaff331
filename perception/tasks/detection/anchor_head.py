"""A detection head with anchors: positions, network, losses and decoding."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perception.frame import Boxes
from perception.grid import BevGrid
from perception.loss import Loss
from perception.modules.slot import Slot
from perception.tasks.detection.center_head import by_speed
from perception.tasks.detection.config import AnchorHead as AnchorHeadConfig
from perception.tasks.network import TaskNetwork
from perception.taxonomy import Taxonomy

# Positions of anchors.
#
# A box is encoded relative to its anchor: x and y in diagonals of the anchor, z in its heights, logarithms of the
# ratios of width, length and height, rotation in rad; and, if the network predicts it, the velocity in m/s.


def all_anchors(config: AnchorHeadConfig, shapes: Sequence[tuple[int, ...]]) -> Tensor:
    """(N, 7) x y z (m, centre), width, length, height (m), yaw (rad) of all anchors on feature maps of these shapes.

    Ordered by map, then by anchor of a cell, then row by row.
    """
    maps = []
    for level, (rows, columns) in enumerate(shapes):
        cell = of_a_cell(config, level, rows, columns)[:, None, None]  # A 1 1 9
        row, column = torch.meshgrid(torch.arange(rows) + 0.5, torch.arange(columns) + 0.5, indexing="ij")
        place = cell[..., :2] + torch.stack([column, row], dim=-1) * cell[..., 2:4]
        rest = torch.cat([cell[..., 4:5] + cell[..., 7:8] / 2, cell[..., 5:9]], dim=-1)
        maps.append(torch.cat([place, rest.expand(-1, rows, columns, -1)], dim=-1).flatten(0, 2))
    return torch.cat(maps)


def of_a_cell(config: AnchorHeadConfig, level: int, rows: int, columns: int) -> Tensor:
    """(A, 9): corner x y of the map, size of cells along x y, z of the bottom, width, length, height (m), yaw (rad)."""
    scale = config.scales[level]
    anchors = [
        [
            *(anchor.x[0], anchor.y[0]),
            *((anchor.x[1] - anchor.x[0]) / columns, (anchor.y[1] - anchor.y[0]) / rows),
            *(anchor.bottom, *(scale * side for side in anchor.size), rotation),
        ]
        for anchor in config.anchors
        for rotation in config.rotations
    ]
    return torch.tensor(anchors)


GAMMA = 2.0  # of the focal loss (Lin et al., 2017)
BETA = 1 / 9  # where the smooth L1 distance becomes linear
VELOCITY_WEIGHT, DIRECTION_WEIGHT = 0.2, 0.2
NOTHING, UNSURE = -1, -2  # labels of negative anchors, and of ignored ones


@dataclass(frozen=True)
class AnchorTargets:
    """Targets of one frame with N anchors, P of them positive."""

    labels: Tensor  # (N,) int64: a class, NOTHING or UNSURE
    positives: Tensor  # (P,) int64, indices of positive anchors
    codes: Tensor  # (P, 9 or 7) float32 boxes, encoded as above; NaN for unknown velocities
    directions: Tensor  # (P,) int64: 0 or 1


def anchor_losses(
    config: AnchorHeadConfig, dense: Mapping[str, Tensor], labels: Mapping[str, Tensor]
) -> dict[str, Loss]:
    """Loss terms for classes, boxes and directions, normalised by the positive anchors; labels of `anchor_labels`."""
    shapes = [tuple(dense[f"classes.{i}"].shape[-2:]) for i in range(len(config.scales))]
    count = dense["classes.0"].shape[1] // (len(config.anchors) * len(config.rotations))
    classes, codes, directions = (
        torch.cat([_by_anchor(dense[f"{name}.{i}"], n) for i in range(len(config.scales))], dim=1)
        for name, n in {"classes": count, "boxes": config.code, "directions": 2}.items()
    )  # B N n
    anchors = all_anchors(config, shapes).to(classes)
    terms: dict[str, list[Tensor]] = {"classes": [], "boxes": [], "directions": []}
    counts = []
    for i, real in enumerate(labels["real"]):
        target = anchor_targets(config, labels["boxes"][i, real], labels["classes"][i, real], anchors)
        terms["classes"].append(focal(classes[i], target.labels, config.training.alpha))
        terms["boxes"].append(_distance(codes[i, target.positives], target.codes))
        entropy = F.cross_entropy(directions[i, target.positives], target.directions, reduction="sum")
        terms["directions"].append(DIRECTION_WEIGHT * entropy)
        counts.append(max(len(target.positives), 1))
    objects = torch.tensor(counts, device=classes.device)
    return {name: Loss(torch.stack(values), objects) for name, values in terms.items()}


def anchor_targets(config: AnchorHeadConfig, boxes: Tensor, classes: Tensor, anchors: Tensor) -> AnchorTargets:
    """Assignment of anchors (N, 7) x y z w l h yaw to boxes (G, 9) x y z w l h yaw vx vy by their IoU on the ground.

    Boxes count as their nearest axis-aligned rectangles. An anchor is assigned to the object that it overlaps most, if
    their IoU is at least `positive`; and the anchors that overlap an object most are assigned to it, if it is at least
    `least` (`AnchorTraining`).
    """
    objects, limits = boxes[:, :7].to(anchors), config.training
    chosen = torch.full((len(anchors),), -1, device=anchors.device)  # object; -1: none, -2: unsure
    if len(boxes):
        overlap = _overlaps(objects, anchors)  # G N
        most, best = overlap.max(dim=0)
        chosen = torch.where(most < limits.negative, -1, torch.where(most >= limits.positive, best, -2))
        for i, own in enumerate(overlap):
            if own.max() >= limits.least:
                chosen[own == own.max()] = i
    labels = torch.cat([classes, classes.new_tensor([UNSURE, NOTHING])])[chosen]
    positives = (chosen >= 0).nonzero()[:, 0]
    mine, own = anchors[positives], objects[chosen[positives]]
    diagonal = mine[:, 3:5].square().sum(dim=1, keepdim=True).sqrt()
    codes = [
        (own[:, :2] - mine[:, :2]) / diagonal,
        (own[:, 2:3] - mine[:, 2:3]) / mine[:, 5:6],
        (own[:, 3:6] / mine[:, 3:6]).log(),
        own[:, 6:7] - mine[:, 6:7],
        boxes[chosen[positives], 7:9].to(anchors),
    ]
    turned = (own[:, 6] - config.direction_offset) / (2 * math.pi)
    turned = turned - (turned + config.direction_limit_offset).floor()
    directions = (2 * turned).floor().clamp(0, 1).long()
    return AnchorTargets(labels, positives, torch.cat(codes, dim=1)[:, : config.code], directions)


def focal(logits: Tensor, labels: Tensor, alpha: float) -> Tensor:
    """Sum over anchors (N, classes) of the focal loss (Lin et al., 2017, eq. 5); labels (N,) as in `AnchorTargets`.

    -a (1 - q)^g log q, with q = p and a = alpha for the true class, q = 1 - p and a = 1 - alpha for the others.
    """
    sure = labels != UNSURE
    logits, labels = logits[sure], labels[sure]
    is_it = F.one_hot(labels + 1, logits.shape[1] + 1)[:, 1:].to(logits)
    signed = torch.where(is_it == 1, logits, -logits)
    weight = (alpha * is_it + (1 - alpha) * (1 - is_it)) * (1 - signed.sigmoid()) ** GAMMA
    return -(weight * F.logsigmoid(signed)).sum()


def _distance(codes: Tensor, wanted: Tensor) -> Tensor:
    """Sum over objects (P, 9 or 7) of the smooth L1 distance; for angles that of the sine of their difference.

    So opposite headings have no loss here; the direction classifier distinguishes them.
    """
    known = ~wanted.isnan()
    off = codes - wanted.nan_to_num()
    off = torch.cat([off[:, :6], off[:, 6:7].sin(), off[:, 7:]], dim=1)
    distance = F.smooth_l1_loss(off, torch.zeros_like(off), beta=BETA, reduction="none")
    weight = torch.ones_like(distance)
    weight[:, 7:] = VELOCITY_WEIGHT
    return torch.where(known, weight * distance, 0.0).sum()


def _by_anchor(values: Tensor, n: int) -> Tensor:
    """(B, A * n, rows, columns) -> (B, A * rows * columns, n)."""
    return values.unflatten(1, (-1, n)).movedim(2, -1).flatten(1, 3)


def _overlaps(boxes: Tensor, anchors: Tensor) -> Tensor:
    """(G, N) IoU of the nearest axis-aligned rectangles of boxes (G, 7) and anchors (N, 7)."""
    (low, high), (lows, highs) = _rectangles(boxes), _rectangles(anchors)
    shared = (torch.minimum(high[:, None], highs) - torch.maximum(low[:, None], lows)).clamp(min=0).prod(dim=-1)
    return shared / ((high - low).prod(dim=-1)[:, None] + (highs - lows).prod(dim=-1) - shared).clamp(min=1e-6)


def _rectangles(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Lower and upper corners (N, 2)."""
    yaw = boxes[:, 6]
    across = (yaw - (yaw / math.pi + 0.5).floor() * math.pi).abs() > math.pi / 4
    sides = torch.where(across[:, None], boxes[:, 3:5], boxes[:, [4, 3]])
    return boxes[:, :2] - sides / 2, boxes[:, :2] + sides / 2


class AnchorHead(TaskNetwork):
    """Feature maps (B, C, rows, columns), one for each level -> class and box for each of A anchors at every cell.

    On level i the anchors are `scales[i]` times as large; all levels share the layers. The dense outputs of level i are
    classes.i (B, A * classes, rows, columns), boxes.i (B, A * 9 or 7, ...) and directions.i (B, A * 2, ...).
    """

    def __init__(self, config: AnchorHeadConfig, inputs: int, taxonomy: Taxonomy) -> None:
        super().__init__()
        self.config, self.taxonomy, self.count = config, taxonomy, len(taxonomy.classes)
        anchors = len(config.anchors) * len(config.rotations)
        self.branches = nn.ModuleDict(
            {
                name: Slot(f"heads.detection.{name}", nn.Conv2d(inputs, anchors * n, 1))
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
        yaw = self._turn(own[..., 8] + code[..., 6], direction)[..., None]
        velocity = code[..., 7:9] if self.config.velocity else torch.zeros_like(center)
        boxes = torch.cat([center, z, size, yaw.sin(), yaw.cos(), velocity], dim=-1)
        return boxes, at(scores, self.count)

    def _turn(self, yaw: Tensor, direction: Tensor) -> Tensor:
        """The yaw modulo pi in the half circle after the offset, plus pi where the direction is 1."""
        offset, limit = self.config.direction_offset, self.config.direction_limit_offset
        turns = ((yaw - offset) / math.pi + limit).floor()
        return yaw + math.pi * (direction.to(yaw.dtype) - turns)


def anchor_labels(boxes: Boxes, grid: BevGrid) -> dict[str, np.ndarray]:
    """Labels of one frame's N objects on the grid: boxes (N, 9) x y z w l h yaw vx vy, classes (N,), `real`, True."""
    x, y = boxes.centers[:, 0], boxes.centers[:, 1]
    boxes = boxes.select((x > grid.x[0]) & (x < grid.x[1]) & (y > grid.y[0]) & (y < grid.y[1]))
    numbers = [boxes.centers, boxes.sizes, boxes.yaws[:, None], boxes.velocities[:, :2]]
    return {
        "boxes": np.concatenate(numbers, axis=1).astype(np.float32),
        "classes": boxes.labels,
        "real": np.ones(len(boxes), bool),
    }
