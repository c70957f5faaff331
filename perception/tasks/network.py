"""The torch part of a task: its head, decoding and losses."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


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


class PointFeatures(NamedTuple):
    """What a head with `reads = "points"` gets: K places for the points of the keyframe, zeros as padding."""

    features: Tensor  # (B, C, rows, columns) of the trunk
    points: Tensor  # (B, K, 5) x y z (m, reference frame), intensity (0-255), dt (s)
    cells: Tensor  # (B, K) int, row * columns + column of the points in `features`; rows * columns: none

    @staticmethod
    def of(features: Tensor, points: Tensor, pillars: Tensor, columns: int, stride: int) -> PointFeatures:
        """With the cells from those on the pillar grid of so many columns (B, K), for a feature map of this stride in
        pillars."""
        row = torch.div(pillars, columns, rounding_mode="floor")
        row, column = (torch.div(each, stride, rounding_mode="floor") for each in (row, pillars - row * columns))
        return PointFeatures(features, points, row * (columns // stride) + column)


class TaskNetwork(nn.Module):
    """The head of a task. Its slots are called heads.TASK.*"""

    @abstractmethod
    def forward(self, features: Any) -> dict[str, Tensor]:
        """Dense outputs for feature maps (B, C, rows, columns), one or one for each level of a pyramid.

        A task that reads `points` gets `PointFeatures` instead, one that reads `inputs` the network's inputs by name.
        """

    @abstractmethod
    def decode(self, dense: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Inputs of the task's `result`, in the order of its `outputs`; part of the exported graph."""

    @abstractmethod
    def losses(self, dense: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> dict[str, Loss]:
        """Loss terms by name; the sum of their means is minimised."""


class FittedNetwork(TaskNetwork):
    """A head that reads pictures and is fitted in closed form to each keyframe once, without gradients."""

    @abstractmethod
    def start(self, earlier: nn.Module | None = None) -> None:
        """Load pretrained weights and forget the keyframes observed before; what the `earlier` head knows is built
        upon."""

    @abstractmethod
    def observe(self, inputs: Mapping[str, Tensor], labels: Mapping[str, Tensor], drive: str) -> None:
        """Add a keyframe to fit to, by inputs without LiDAR and labels, both of batch dimension 1; drives are held out
        whole."""

    @abstractmethod
    def fit(self) -> Sequence[str]:
        """Fit to the observed keyframes, or raise InputError if they are too few; returns lines that say what was
        taught."""


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
