"""The loss of the depth distribution against depth labels."""

from __future__ import annotations

import torch
from torch import Tensor

from perception.config import Depth
from perception.tasks.network import Loss


def depth_targets(labels: Tensor, depth: Depth) -> tuple[Tensor, Tensor, Tensor]:
    """The two bins around each depth, and the share of the second: lower, upper (int64) and share, shaped as labels.

    Bin i is centred at near + (i + 0.5) * (far - near) / bins, as in the lift. The expectation of the shares is the
    depth itself, but for the half bins at both ends, which belong to the first and last bin.
    """
    place = (labels - depth.near) / (depth.far - depth.near) * depth.bins - 0.5
    place = place.clamp(0, depth.bins - 1)
    lower = place.floor().long()
    return lower, (lower + 1).clamp(max=depth.bins - 1), place - lower


def depth_loss(logits: Tensor, labels: Tensor, depth: Depth) -> Loss:
    """Cross-entropy with the two bins around the depth of each labelled cell, times `depth.supervision`.

    BEVDepth takes the binary cross-entropy of the bin that holds the depth; two bins keep the depth within its bin.

    Args:
        logits: (B, N, D, h, w).
        labels: (B, N, h, w) m, 0 without a label.
    """
    lower, upper, share = (each.unsqueeze(2) for each in depth_targets(labels, depth))
    likely = logits.float().log_softmax(dim=2)
    cost = (share - 1) * likely.gather(2, lower) - share * likely.gather(2, upper)
    known = labels > 0
    sums = torch.where(known, cost.squeeze(2), 0).sum(dim=(1, 2, 3))
    return Loss(depth.supervision * sums, known.sum(dim=(1, 2, 3)))
