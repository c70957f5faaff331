"""Losses of CenterPoint's head (Yin et al., 2021)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from perception.tasks.detection.config import Weights
from perception.tasks.network import Loss

REGRESSION = {
    "offset": 2,  # of the centre from the cell's corner, in cells
    "height": 1,  # of the centre, m
    "size": 3,  # logarithm of width, length, height in m
    "heading": 2,  # sine and cosine of the yaw
    "velocity": 2,  # m/s
}  # regression output at an object's cell -> number of channels


def gaussian_focal(logits: Tensor, target: Tensor) -> Loss:
    """Penalty-reduced focal loss of heatmaps (B, ...) per object (CornerNet, Law and Deng, 2018, eq. 1).

    -(1 - p)^2 log p where the target is 1, which counts as an object, else -(1 - target)^4 p^2 log(1 - p).
    """
    p = logits.sigmoid()
    positive = target == 1
    hit = -((1 - p) ** 2) * F.logsigmoid(logits)
    miss = -((1 - target) ** 4) * p**2 * F.logsigmoid(-logits)
    return Loss(torch.where(positive, hit, miss).flatten(1).sum(dim=1), positive.flatten(1).sum(dim=1))


def center_losses(dense: Mapping[str, Tensor], labels: Mapping[str, Tensor], weights: Weights) -> dict[str, Loss]:
    """Heatmap and regression terms, and an attribute term if the head learns attributes.

    Args:
        dense: of all groups (`center_head.joined`).
        labels: a batch of `targets.center_labels`.
    """
    cells, real = dense["heatmap"][0, 0].numel(), labels["real"]

    def at_objects(name: str, n: int) -> Tensor:  # B N n
        values = dense[name].flatten(2).unflatten(1, (-1, n)).transpose(2, 3).flatten(1, 2)  # B groups*cells n
        place = labels["groups"] * cells + labels["cells"]
        return values.gather(1, place[..., None].expand(-1, -1, n))

    regression = dense["heatmap"].new_zeros(len(real))
    for name, n in REGRESSION.items():
        wanted = labels[name]
        known = real[..., None] & ~wanted.isnan()
        distance = torch.where(known, (at_objects(name, n) - wanted.nan_to_num()).abs(), 0.0).flatten(1).sum(dim=1)
        regression = regression + distance * (weights.velocity if name == "velocity" else 1.0)
    losses = {
        "heatmap": gaussian_focal(dense["heatmap"], labels["heatmap"]),
        "regression": Loss(weights.regression * regression, real.sum(dim=1)),
    }
    if "attribute" in dense:
        has = real & (labels["attributes"] >= 0)
        attributes = dense["attribute"].shape[1] // (dense["offset"].shape[1] // REGRESSION["offset"])
        logits = at_objects("attribute", attributes).transpose(1, 2)
        entropy = F.cross_entropy(logits, labels["attributes"].clamp(min=0), reduction="none")  # B N
        losses["attribute"] = Loss(weights.attribute * torch.where(has, entropy, 0.0).sum(dim=1), has.sum(dim=1))
    return losses
