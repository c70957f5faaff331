"""Fits the Gaussians of a kind of condition, and calibrates them by cross-validation over drives."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from perception.tasks.conditions.folds import FOLDS
from perception.tasks.conditions.gaussians import Gaussians, Moments, fit_temperature

COVERED = 0.99  # share of held-out keyframes within the limit of the distance


class Pictures(NamedTuple):
    """Features of all pictures of K keyframes."""

    recorded: Tensor  # (n, D)
    changed: Tensor  # (n, D) with photometric augmentation
    keyframe: Tensor  # (n,) index of its keyframe

    def moments(self, values: Tensor, number: int) -> tuple[Moments, Moments]:
        """Those of the classifier and of the distance, for values (K,); keyframes with one below 0 do not count."""
        own = values[self.keyframe]
        recorded = Moments.of(self.recorded, own, number)
        return recorded + Moments.of(self.changed, own, number), recorded

    def distances(self, gaussians: Gaussians, chosen: Tensor) -> Tensor:
        """(k, V) squared distances of the chosen (K,) of the keyframes: means over their pictures as recorded."""
        rows = chosen[self.keyframe]
        each = gaussians.distances(self.recorded[rows])
        _, place = self.keyframe[rows].unique(return_inverse=True)
        counts = place.bincount()
        return torch.zeros(len(counts), each.shape[1], dtype=each.dtype).index_add_(0, place, each) / counts[:, None]


class Fitted(NamedTuple):
    """A fitted kind of condition."""

    classifier: Gaussians
    distance: Gaussians
    temperature: float
    limit: float  # of the distance


def fit(pictures: Pictures, values: Tensor, learned: Tensor, folds: Tensor) -> Fitted | None:
    """Fit to keyframes; None if each fold holds all keyframes of some value.

    Args:
        values: (K,), -1 where unknown.
        learned: (V,) bool; only these values occur.
        folds: (K,); each is held out once.
    """
    number = len(learned)
    index = learned.cumsum(dim=0) - 1  # of a learned value among them
    everything = pictures.moments(values, number)
    logits, nearest, truth = [], [], []
    for fold in range(FOLDS):
        held_out = torch.where(folds == fold, values, -1)
        chosen = held_out >= 0
        rest = [whole - own for whole, own in zip(everything, pictures.moments(held_out, number), strict=True)]
        if not chosen.any() or not (rest[0].counts[learned] > 0).all():
            continue
        classifier, distance = (pictures.distances(each.fitted(), chosen)[:, learned] for each in rest)
        logits.append(-0.5 * classifier)
        nearest.append(distance.amin(dim=1))
        truth.append(index[held_out[chosen]])
    if not logits:
        return None
    temperature = fit_temperature(torch.cat(logits), torch.cat(truth))
    limit = float(torch.cat(nearest).sqrt().quantile(COVERED))
    return Fitted(everything[0].fitted(), everything[1].fitted(), temperature, limit)
