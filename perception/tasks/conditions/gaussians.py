"""Gaussians with a shared covariance: a linear classifier and the Mahalanobis distance, from sums over the features.

Linear discriminant analysis (Fisher, 1936; Hastie et al., "The elements of statistical learning", section 4.3). Its
distance tells features apart that are unlike the training data (Lee et al., "A simple unified framework for detecting
out-of-distribution samples and adversarial attacks", NeurIPS 2018). All in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional as F

SHRINKAGE = 0.1  # of the correlations towards none (Friedman, "Regularized discriminant analysis", 1989)


@dataclass
class Moments:
    """Sums over features by value; sums of parts of the data add up."""

    counts: Tensor  # (V,)
    sums: Tensor  # (V, D)
    products: Tensor  # (D, D) sum of x x^T

    @staticmethod
    def of(features: Tensor, values: Tensor, number: int) -> Moments:
        """Of features (n, D) with values (n,) below `number`; those below 0 do not count."""
        known = values >= 0
        x, member = features[known].double(), F.one_hot(values[known], number).double()
        return Moments(member.sum(dim=0), member.T @ x, x.T @ x)

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.counts + other.counts, self.sums + other.sums, self.products + other.products)

    def __sub__(self, other: Moments) -> Moments:
        return Moments(self.counts - other.counts, self.sums - other.sums, self.products - other.products)

    def fitted(self) -> Gaussians:
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
