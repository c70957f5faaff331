"""Terms of losses."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Loss(NamedTuple):
    """A loss term by frame."""

    sums: Tensor  # (B,) weighted sum over the frame
    counts: Tensor  # (B,) number of summands: objects, or 1 for a frame with labels

    def mean(self) -> Tensor:
        """() mean over the batch."""
        return self.sums.sum() / self.counts.sum().clamp(min=1)

    def each(self) -> Tensor:
        """(B,) loss of each frame as if it were the whole batch."""
        return self.sums / self.counts.clamp(min=1)


def lovasz_softmax(probabilities: Tensor, labels: Tensor) -> Tensor:
    """() Lovasz-softmax loss, which follows the IoU: mean over the classes that occur, 0 without elements.

    Berman, Triki, Blaschko, "The Lovasz-Softmax loss", CVPR 2018, algorithm 1 and equation 11. Probabilities (N, C).
    """
    present = torch.unique(labels)
    if not len(present):
        return probabilities.sum() * 0
    truth = (labels[:, None] == present).to(probabilities.dtype)
    errors, order = (truth - probabilities[:, present]).abs().sort(dim=0, descending=True)
    truth = truth.gather(0, order)
    intersection = truth.sum(dim=0) - truth.cumsum(dim=0)
    union = truth.sum(dim=0) + (1 - truth).cumsum(dim=0)
    jaccard = 1 - intersection / union
    gradient = torch.cat([jaccard[:1], jaccard[1:] - jaccard[:-1]])
    return (errors * gradient).sum(dim=0).mean()
