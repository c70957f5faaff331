"""Targets and losses of the head with anchors (SECOND, Yan et al., 2018), as in mmdet3d for nuScenes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from perception.tasks.detection.anchors import all_anchors
from perception.tasks.detection.config import AnchorHead
from perception.tasks.network import Loss

GAMMA = 2.0  # of the focal loss (Lin et al., 2017)
BETA = 1 / 9  # where the smooth L1 distance becomes linear
VELOCITY_WEIGHT, DIRECTION_WEIGHT = 0.2, 0.2
NOTHING, UNSURE = -1, -2  # labels of negative anchors, and of ignored ones


@dataclass(frozen=True)
class AnchorTargets:
    """Targets of one frame with N anchors, P of them positive."""

    labels: Tensor  # (N,) int64: a class, NOTHING or UNSURE
    positives: Tensor  # (P,) int64, indices of positive anchors
    codes: Tensor  # (P, 9 or 7) float32 encoded boxes, see `anchors.py`; NaN for unknown velocities
    directions: Tensor  # (P,) int64: 0 or 1


def anchor_losses(config: AnchorHead, dense: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> dict[str, Loss]:
    """Loss terms for classes, boxes and directions of the dense outputs, normalised by the positive anchors.

    Args:
        labels: a batch of `targets.anchor_labels`.
    """
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


def anchor_targets(config: AnchorHead, boxes: Tensor, classes: Tensor, anchors: Tensor) -> AnchorTargets:
    """Assignment of the anchors (N, 7) x y z w l h yaw to objects by their IoU on the ground.

    Boxes count as their nearest axis-aligned rectangles. An anchor is assigned to the object that it overlaps most, if
    their IoU is at least `positive`; and the anchors that overlap an object most are assigned to it, if it is at least
    `least` (`AnchorTraining`).

    Args:
        boxes: (G, 9) x y z w l h yaw vx vy of the objects.
        classes: (G,) of the objects.
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
