"""Lovasz-softmax loss, which follows the IoU of classes.

Berman, Triki, Blaschko, "The Lovasz-Softmax loss: a tractable surrogate for the optimization of the
intersection-over-union measure in neural networks", CVPR 2018, algorithm 1 and equation 11.
"""

from __future__ import annotations

import torch
from torch import Tensor


def lovasz_softmax(probabilities: Tensor, labels: Tensor) -> Tensor:
    """() mean over the classes that occur; 0 without elements.

    Args:
        probabilities: (N, C), each row sums to 1.
        labels: (N,) int64 class of each element.
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
