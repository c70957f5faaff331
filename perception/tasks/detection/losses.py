"""Losses of CenterPoint's head (Yin et al., 2021)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from perception.tasks.detection.config import DetectionHead, Weights
from perception.tasks.detection.headings import AXIS
from perception.tasks.detection.layout import heatmaps_of, map_name
from perception.tasks.network import Loss

REGRESSION = {
    "offset": 2,  # of the centre from the cell's corner, in cells
    "height": 1,  # of the centre, m
    "size": 3,  # logarithm of width, length, height in m
    "heading": 2,  # sine and cosine of the yaw
    "velocity": 2,  # m/s
}  # regression output at an object's cell -> number of channels
_BOX = (*REGRESSION, *AXIS)
_AT_OBJECTS = (*_BOX, "attribute")


def gaussian_focal(logits: Tensor, target: Tensor) -> Loss:
    """Penalty-reduced focal loss of heatmaps (B, ...) per object (CornerNet, Law and Deng, 2018, eq. 1).

    -(1 - p)^2 log p where the target is 1, which counts as an object, else -(1 - target)^4 p^2 log(1 - p).
    """
    positive = target == 1
    wrong = torch.where(positive, -logits, logits)  # logit of the wrong answer
    weight = torch.where(positive, 1.0, (1 - target) ** 2)
    values = (weight * wrong.sigmoid()) ** 2 * F.softplus(wrong)
    return Loss(values.flatten(1).sum(dim=1), positive.flatten(1).sum(dim=1))


def center_losses(dense: Mapping[str, Tensor], labels: Mapping[str, Tensor], config: DetectionHead) -> dict[str, Loss]:
    """Heatmap and regression terms of each group, and an attribute term if the head learns attributes.

    Each group is normalised by its own objects, so that rare classes count as much as frequent ones.

    Args:
        dense: outputs of `CenterHead.forward`.
        labels: a batch of `targets.center_labels`.
    """
    losses: dict[str, Loss] = {}
    for i in range(len(config.groups)):
        heat = [gaussian_focal(dense[each.name], labels[each.name]) for each in heatmaps_of(config) if each.group == i]
        sums, counts = (torch.stack(values).sum(dim=0) for values in zip(*heat, strict=True))
        own = {name: dense[full] for name in _AT_OBJECTS if (full := map_name(config, name, i)) in dense}
        terms = {"heatmap": Loss(sums, counts)} | _at_objects(own, labels, labels["groups"] == i, config.weights)
        losses |= {map_name(config, name, i): term for name, term in terms.items()}
    return losses


def _at_objects(
    dense: Mapping[str, Tensor], labels: Mapping[str, Tensor], own: Tensor, weights: Weights
) -> dict[str, Loss]:
    """The terms at the cells of one group's objects, own (B, N)."""
    real = labels["real"] & own
    values = {}  # B N n
    for name, found in dense.items():
        place = labels["cells"][..., None].expand(-1, -1, found.shape[1])
        values[name] = found.flatten(2).transpose(1, 2).gather(1, place)
    regression = values["offset"].new_zeros(len(real))
    for name in (name for name in _BOX if name in values):
        wanted = labels[name]
        known = real[..., None] & ~wanted.isnan()
        distance = torch.where(known, (values[name] - wanted.nan_to_num()).abs(), 0.0).flatten(1).sum(dim=1)
        regression = regression + distance * (weights.velocity if name == "velocity" else 1.0)
    losses = {"regression": Loss(weights.regression * regression, real.sum(dim=1))}
    if "attribute" in values:
        has = real & (labels["attributes"] >= 0)
        logits = values["attribute"].transpose(1, 2)
        entropy = F.cross_entropy(logits, labels["attributes"].clamp(min=0), reduction="none")  # B N
        losses["attribute"] = Loss(weights.attribute * torch.where(has, entropy, 0.0).sum(dim=1), has.sum(dim=1))
    return losses
