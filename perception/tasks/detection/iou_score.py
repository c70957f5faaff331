"""Scores that also say how well a box fits: the head predicts the IoU of each box with its object.

CIA-SSD (Zheng et al., 2021) and PillarNeSt (Mao et al., 2024).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from perception.tasks.detection.config import IouScore
from perception.tasks.detection.headings import along_axis
from perception.tasks.network import Loss


def rectified(found: Mapping[str, Tensor], logits: Tensor, config: IouScore) -> dict[str, Tensor]:
    """Detections with the score heatmap^(1 - beta) * IoU^beta, best first; part of the graph.

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


def iou_loss(groups: Sequence[Mapping[str, Tensor]], labels: Mapping[str, Tensor], weight: float, cell: float) -> Loss:
    """Absolute difference of the predicted IoU from that of the predicted box with its object.

    The gradient changes the prediction of the IoU only, not the box.

    Args:
        groups: regression outputs of each group, (B, n, rows, columns).
        labels: a batch of `targets.center_labels`.
        cell: side of the maps' cells in metres.
    """
    place, wanted = labels["cells"][:, None], _boxes(labels, cell)
    sums = wanted.new_zeros(len(wanted))
    for i, maps in enumerate(groups):
        at = {n: m.flatten(2).gather(2, place.expand(-1, m.shape[1], -1)).transpose(1, 2) for n, m in maps.items()}
        with torch.no_grad():
            target = iou_3d(_boxes(at, cell), wanted)
        off = (at["iou"][..., 0].sigmoid() - target).abs()
        sums = sums + torch.where(labels["real"] & (labels["groups"] == i), off, 0.0).sum(dim=1)
    return Loss(weight * sums, labels["real"].sum(dim=1))


def _boxes(values: Mapping[str, Tensor], cell: float) -> Tensor:
    """(..., 8) float32 x y z (m, x and y from the cell's corner), width length height, sine and cosine of the yaw."""
    heading = along_axis(values["heading"], values["axis"]) if "axis" in values else values["heading"]
    parts = (
        values["offset"] * cell,
        values["height"],
        values["size"].clamp(-5, 5).exp(),
        F.normalize(heading.float(), dim=-1),
    )
    return torch.cat([part.float() for part in parts], dim=-1)


def iou_3d(one: Tensor, other: Tensor) -> Tensor:
    """(...) IoU of upright boxes, pair by pair.

    The footprint of the other box is clipped to the first one as in `rotated_iou.py`: by clamping its outline in the
    first box's frame, where what lies outside ends on the border and has no area.

    Args:
        one, other: (..., 8) x y z, width length height, sine and cosine of the yaw.
    """
    turn = torch.stack([one[..., [7, 6]], torch.stack([-one[..., 6], one[..., 7]], dim=-1)], dim=-2)  # ahead, left
    middle = (turn @ (other - one)[..., :2, None])[..., 0]
    ahead = (turn @ other[..., [7, 6], None])[..., 0]
    left = torch.stack([-ahead[..., 1], ahead[..., 0]], dim=-1)
    ahead, left = ahead * other[..., 4:5] / 2, left * other[..., 3:4] / 2
    corners = torch.stack([ahead - left, ahead + left, left - ahead, -ahead - left], dim=-2) + middle[..., None, :]
    half = one[..., [4, 3]][..., None, :] / 2
    sides = corners.roll(-1, dims=-2) - corners  # ... 4 2
    to_lines = torch.cat([-half - corners, half - corners], dim=-1)
    steps = torch.cat([sides, sides], dim=-1)
    crossed = torch.where(steps != 0, to_lines / steps, 0.0).clamp(0, 1).sort(dim=-1).values
    crossed = torch.cat([torch.zeros_like(crossed[..., :1]), crossed], dim=-1)  # ... 4 5
    outline = (corners[..., None, :] + crossed[..., None] * sides[..., None, :]).flatten(-3, -2)
    x, y = torch.maximum(torch.minimum(outline, half), -half).unbind(dim=-1)
    shared = (x * y.roll(-1, dims=-1) - x.roll(-1, dims=-1) * y).sum(dim=-1) / 2

    top = torch.minimum(one[..., 2] + one[..., 5] / 2, other[..., 2] + other[..., 5] / 2)
    bottom = torch.maximum(one[..., 2] - one[..., 5] / 2, other[..., 2] - other[..., 5] / 2)
    shared = shared * (top - bottom).clamp(min=0)
    volumes = one[..., 3:6].prod(dim=-1) + other[..., 3:6].prod(dim=-1)
    return shared / (volumes - shared).clamp(min=1e-9)
