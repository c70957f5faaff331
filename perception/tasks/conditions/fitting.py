"""Fits Gaussians to the features of each kind of condition, and calibrates them by cross-validation over drives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional as F

# Gaussians with a shared covariance: a linear classifier and the Mahalanobis distance, from sums over the features.
#
# Linear discriminant analysis (Fisher, 1936; Hastie et al., "The elements of statistical learning", section 4.3). Its
# distance tells features apart that are unlike the training data (Lee et al., "A simple unified framework for
# detecting out-of-distribution samples and adversarial attacks", NeurIPS 2018). All in float64.

SHRINKAGE = 0.1  # of the correlations towards none (Friedman, "Regularized discriminant analysis", 1989)


@dataclass
class Moments:
    """Sums over features by value; sums of parts of the data add up."""

    counts: Tensor  # (V,)
    sums: Tensor  # (V, D)
    products: Tensor  # (D, D) sum of x x^T

    @staticmethod
    def of(features: Tensor, values: Tensor, number: int) -> Moments:
        """Accumulates features (n, D) by class, from values (n,) below `number`; those below 0 are skipped."""
        known = values >= 0
        x, member = features[known].double(), F.one_hot(values[known], number).double()
        return Moments(member.sum(dim=0), member.T @ x, x.T @ x)

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.counts + other.counts, self.sums + other.sums, self.products + other.products)

    def __sub__(self, other: Moments) -> Moments:
        return Moments(self.counts - other.counts, self.sums - other.sums, self.products - other.products)

    def fit(self) -> Gaussians:
        """The Gaussians; the means of values without features are 0."""
        means = self.sums / self.counts.clamp(min=1)[:, None]
        scatter = self.products - means.T @ (self.counts[:, None] * means)
        covariance = scatter / self.counts.sum().clamp(min=1)
        deviations = covariance.diagonal().clamp(min=1e-12).sqrt()
        correlations = (1 - SHRINKAGE) * covariance / torch.outer(deviations, deviations)
        spread, axes = torch.linalg.eigh(correlations + SHRINKAGE * torch.eye(len(means.T), dtype=means.dtype))
        whitening = axes / deviations[:, None] / spread.clamp(min=SHRINKAGE / 2).sqrt()
        return Gaussians(means, whitening)


@dataclass
class Gaussians:
    """One Gaussian for each value, with a common covariance whose inverse is W W^T."""

    means: Tensor  # (V, D)
    whitening: Tensor  # (D, D), W

    def distances(self, features: Tensor) -> Tensor:
        """(n, V) squared Mahalanobis distances of features (n, D)."""
        white = (features.double() - self.means.mean(dim=0)) @ self.whitening
        centres = (self.means - self.means.mean(dim=0)) @ self.whitening
        # The inner products are those of whitened and centred features, so that little cancels.
        squares = white.square().sum(dim=1)[:, None] - 2 * white @ centres.T + centres.square().sum(dim=1)
        return squares.clamp(min=0)

    def linear(self) -> tuple[Tensor, Tensor]:
        """Weights (V, D) and biases (V,) of logits: minus half the squared distances, but for what all values share."""
        weights = self.means @ self.whitening @ self.whitening.T
        return weights, -0.5 * (weights * self.means).sum(dim=1)


def fit_temperature(logits: Tensor, values: Tensor) -> float:
    """The temperature at which held-out logits (n, V) have the least negative log-likelihood, for values (n,).

    Guo et al., "On calibration of modern neural networks", ICML 2017, with the targets of Platt (1999): separable data
    would otherwise give the temperature 0.
    """
    n, number = logits.shape
    targets = torch.full_like(logits, 1 / (n + number)).scatter_(1, values[:, None], (n + 1) / (n + number))

    def loss(log_temperature: float) -> float:
        log_likelihoods = (logits / torch.tensor(log_temperature).exp()).log_softmax(dim=1)
        return float(-(targets * log_likelihoods).sum(dim=1).mean())

    return float(torch.tensor(minimize_scalar(loss, bounds=(-5.0, 7.0), method="bounded").x).exp())


FOLDS = 8  # parts of the drives; each is held out once


def folds_of_drives(drives: Sequence[str]) -> Tensor:
    """(n,) fold of each keyframe from its drive: a drive is in one fold, and drives are shuffled, always alike."""
    names = [*dict.fromkeys(drives)]
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(0))
    fold = {names[int(place)]: i % FOLDS for i, place in enumerate(order)}
    return torch.tensor([fold[drive] for drive in drives], dtype=torch.int64)


def find_learned_values(values: Tensor, drives: Sequence[str], number: int) -> Tensor:
    """(number,) bool: which of the values (n,) of keyframes (-1: unknown) at least two drives show; one is held out."""
    shown: list[set[str]] = [set() for _ in range(number)]
    for value, drive in zip(values.tolist(), drives, strict=True):
        if value >= 0:
            shown[value].add(drive)
    return torch.tensor([len(each) >= 2 for each in shown])


def describe_taught(kind: str, names: Sequence[str], values: Tensor, drives: Sequence[str], learned: Tensor) -> str:
    """How many frames and drives taught each of the named values (n,), -1 for unknown, and which are not learned."""
    told: dict[int, list[str]] = {value: [] for value in range(-1, len(names))}
    for value, drive in zip(values.tolist(), drives, strict=True):
        told[value].append(drive)
    counts = {value: f"{len(each)} frames of {len({*each})} drives" for value, each in told.items()}
    parts = [f"{name} {counts[i]}{'' if learned[i] else ' (stays unknown)'}" for i, name in enumerate(names)]
    if told[-1]:
        parts.append(f"without a tag {counts[-1]} (an empty description names none, not even clear or day)")
    return f"{kind}: {', '.join(parts)}"


COVERED = 0.99  # share of held-out keyframes within the limit of the distance


class Pictures(NamedTuple):
    """Features of all pictures of K keyframes."""

    recorded: Tensor  # (n, D)
    changed: Tensor  # (n, D) with photometric augmentation
    keyframe: Tensor  # (n,) index of its keyframe

    def moments(self, values: Tensor, number: int) -> tuple[Moments, Moments]:
        """Moments for the classifier and the distance, from values (K,); keyframes with one below 0 are skipped."""
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
    """Fit to values (K,) of keyframes, -1: unknown, only those learned (V,); each of the folds (K,) is held out once.

    None if each fold holds all keyframes of some value.
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
        classifier, distance = (pictures.distances(each.fit(), chosen)[:, learned] for each in rest)
        logits.append(-0.5 * classifier)
        nearest.append(distance.amin(dim=1))
        truth.append(index[held_out[chosen]])
    if not logits:
        return None
    temperature = fit_temperature(torch.cat(logits), torch.cat(truth))
    limit = float(torch.cat(nearest).sqrt().quantile(COVERED))
    return Fitted(everything[0].fit(), everything[1].fit(), temperature, limit)


class Transferred(NamedTuple):
    """A kind of condition that was learned from few drives, beside what an earlier recogniser knows; whitened."""

    centres: Tensor  # (V, D); 0 where neither knows the value
    learned: Tensor  # (V,) bool
    temperature: float
    limit: float  # of the distance


def transfer(pictures: Pictures, values: Tensor, drives: Sequence[str], centres: Tensor, known: Tensor) -> Transferred:
    """Carry an earlier recogniser over to other pictures: values that these do not show keep their place to the others.

    The centre of a value without keyframes is that of each taught value, moved by the difference of the two earlier
    centres, on average. Such a centre only rejects: what is nearest to it is unknown.

    Args:
        pictures: whitened features.
        values: (K,), -1 where unknown; only known values occur, and two drives or more.
        centres: (V, D) of the earlier recogniser.
        known: (V,) bool, values that it learned.
    """

    def moved(chosen: Tensor) -> Tensor:
        moments = pictures.moments(torch.where(chosen, values, -1), len(known))[1]
        taught = moments.counts > 0
        shift = (moments.sums[taught] / moments.counts[taught, None] - centres[taught]).mean(dim=0)
        found = torch.where(known[:, None], centres + shift, 0.0)
        found[taught] = moments.sums[taught] / moments.counts[taught, None]
        return found

    tagged = values >= 0
    nearest, logits, truth = [], [], []
    eye = torch.eye(centres.shape[1], dtype=centres.dtype)
    for drive in dict.fromkeys(drives):
        own = torch.tensor([each == drive for each in drives]) & tagged
        if own.any() and (tagged & ~own).any():
            squares = pictures.distances(Gaussians(moved(tagged & ~own), eye), own)[:, known]
            nearest.append(squares.amin(dim=1))
            logits.append(-0.5 * squares)
            truth.append((known.cumsum(dim=0) - 1)[values[own]])
    temperature = fit_temperature(torch.cat(logits), torch.cat(truth))
    limit = float(torch.cat(nearest).sqrt().quantile(COVERED))
    learned = torch.bincount(values[tagged], minlength=len(known)) > 0
    return Transferred(moved(tagged), learned, temperature, limit)
