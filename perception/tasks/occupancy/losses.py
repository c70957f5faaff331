"""Losses of occupancy over the observed voxels of one frame."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from perception.tasks.lovasz import lovasz_softmax


def cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """() mean over voxels, weighted by their classes.

    Args:
        logits: (N, C), N > 0.
        labels: (N,) int64.
        weights: (C,) of the classes.
    """
    each = F.cross_entropy(logits, labels, reduction="none")
    own = weights.to(logits)[labels]
    return (own * each).sum() / own.sum().clamp(min=torch.finfo(own.dtype).tiny)


def lovasz(probabilities: Tensor, labels: Tensor, free: int) -> Tensor:
    """() Lovasz-softmax of the occupied voxels and of as many free ones: those that are least likely to be free.

    Sorting all voxels, most of which are free, would take most of the time of a training step. Of the elements in
    descending order of their errors, the first ones have the same weights whatever follows.

    Args:
        probabilities: (N, C).
        labels: (N,) int64.
        free: class of the free voxels.
    """
    occupied = torch.nonzero(labels != free)[:, 0]
    empty = torch.nonzero(labels == free)[:, 0]
    if len(empty) > max(len(occupied), 1):
        hardest = probabilities[empty, free].detach().topk(max(len(occupied), 1), largest=False, sorted=False)
        empty = empty[hardest.indices]
    chosen = torch.cat([occupied, empty])
    return lovasz_softmax(probabilities[chosen], labels[chosen])


def scale_loss(probabilities: Tensor, truth: Tensor) -> Tensor:
    """() scene-class affinity loss: mean over the classes that occur of -log of precision, recall and specificity.

    Cao and de Charette, "MonoScene: Monocular 3D Semantic Scene Completion", CVPR 2022, equations 2 to 5: with the
    classes' probabilities it is the semantic term, with a single class for what is occupied the geometric one.

    Args:
        probabilities: (N, C) of each class.
        truth: (N, C) bool.
    """
    there = truth.any(dim=0)
    p, t = probabilities[:, there], truth[:, there].to(probabilities)
    hits, found, true, false = (p * t).sum(dim=0), p.sum(dim=0), t.sum(dim=0), (1 - t).sum(dim=0)
    terms = _log(hits, found) + _log(hits, true)
    terms = terms + _log(((1 - p) * (1 - t)).sum(dim=0), false).where(false > 0, 0.0)
    return -terms.sum() / there.sum().clamp(min=1)


def _log(part: Tensor, whole: Tensor) -> Tensor:
    """Logarithm of a share, which rounding may put above 1; the least positive number instead of 0."""
    tiny = torch.finfo(part.dtype).tiny
    return (part / whole.clamp(min=tiny)).clamp(tiny, 1).log()
