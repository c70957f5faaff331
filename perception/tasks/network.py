"""The torch part of a task: its head, decoding and losses."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from perception.loss import Loss


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
