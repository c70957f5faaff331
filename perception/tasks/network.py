"""The torch part of a task: its head, decoding and losses."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn


class Loss(NamedTuple):
    """A loss term by frame.

    Attributes:
        sums: (B,) weighted sum over the frame.
        counts: (B,) number of summands: objects, or 1 for a frame with labels.
    """

    sums: Tensor
    counts: Tensor

    def mean(self) -> Tensor:
        """() mean over the batch."""
        return self.sums.sum() / self.counts.sum().clamp(min=1)

    def each(self) -> Tensor:
        """(B,) loss of each frame as if it were the whole batch."""
        return self.sums / self.counts.clamp(min=1)


class TaskNetwork(nn.Module):
    """The head of a task. Its slots are called heads.TASK.*"""

    @abstractmethod
    def forward(self, features: Any) -> dict[str, Tensor]:
        """Dense outputs for feature maps (B, C, rows, columns), one or one for each level of a pyramid."""

    @abstractmethod
    def decode(self, dense: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Inputs of the task's `result`, in the order of its `outputs`; part of the exported graph."""

    @abstractmethod
    def losses(self, dense: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> dict[str, Loss]:
        """Loss terms by name; the sum of their means is minimised."""
