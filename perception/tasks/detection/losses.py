"""Losses of the heads: each is a dictionary of named terms whose sum is minimised."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from perception.frame import ATTRIBUTES
from perception.tasks.detection.targets import DetectionTargets

REGRESSION_WEIGHT = 0.25  # as CenterPoint's
VELOCITY_WEIGHT = 0.2  # of the velocity within the regression
ATTRIBUTE_WEIGHT = 0.2
MAP_WEIGHT = 4.0  # a mean over cells is small beside the detection's sums over objects


def gaussian_focal(logits: Tensor, target: Tensor) -> Tensor:
    """Penalty-reduced focal loss (CornerNet, Law and Deng, 2018, eq. 1), per object.

    -(1 - p)^2 log p where the target is 1, else -(1 - target)^4 p^2 log(1 - p), summed and divided by the number
    of ones. Both arguments have the same shape.
    """
    p = logits.sigmoid()
    positive = target == 1
    hit = -((1 - p) ** 2) * F.logsigmoid(logits)
    miss = -((1 - target) ** 4) * p**2 * F.logsigmoid(-logits)
    return torch.where(positive, hit, miss).sum() / positive.sum().clamp(min=1)


def detection_losses(dense: dict[str, Tensor], targets: DetectionTargets) -> dict[str, Tensor]:
    """Heat map, regression and attribute terms for the head's dense outputs, of all groups (`heads.detection.joined`).

    The attribute's is left out where the head does not learn it.
    """
    cells = dense["heatmap"][0, 0].numel()

    def at_objects(name: str, n: int) -> Tensor:  # B N n
        values = dense[name].flatten(2).unflatten(1, (-1, n)).transpose(2, 3).flatten(1, 2)  # B groups*cells n
        place = targets.groups * cells + targets.cells
        return values.gather(1, place[..., None].expand(-1, -1, n))

    objects = targets.real.sum().clamp(min=1)
    regression = dense["heatmap"].new_zeros(())
    for name, wanted in targets.regression.items():
        known = targets.real[..., None] & ~wanted.isnan()
        found = at_objects(name, wanted.shape[-1])
        distance = torch.where(known, (found - wanted.nan_to_num()).abs(), 0.0).sum() / objects
        regression = regression + distance * (VELOCITY_WEIGHT if name == "velocity" else 1.0)

    losses = {
        "heatmap": gaussian_focal(dense["heatmap"], targets.heatmap),
        "regression": REGRESSION_WEIGHT * regression,
    }
    if "attribute" in dense:
        has = targets.real & (targets.attributes >= 0)
        logits = at_objects("attribute", len(ATTRIBUTES)).transpose(1, 2)
        entropy = F.cross_entropy(logits, targets.attributes.clamp(min=0), reduction="none")  # B N
        losses["attribute"] = ATTRIBUTE_WEIGHT * torch.where(has, entropy, 0.0).sum() / has.sum().clamp(min=1)
    return losses


def map_losses(dense: dict[str, Tensor], labels: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """Binary cross-entropy of the map logits (B, 6, rows, columns) over the frames whose map is known (valid, B)."""
    entropy = F.binary_cross_entropy_with_logits(dense["map_logits"], labels.float(), reduction="none")
    per_frame = entropy.mean(dim=(1, 2, 3))
    return {"map": MAP_WEIGHT * torch.where(valid, per_frame, 0.0).sum() / valid.sum().clamp(min=1)}
