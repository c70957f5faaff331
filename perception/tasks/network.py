"""A task's half in torch: its head, what the head's outputs mean, and what they lose."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn


class Loss(NamedTuple):
    """A term of the loss, frame by frame.

    Attributes:
        sums: (B,) summed over the frame, weighted.
        counts: (B,) how much the sum is over: objects, or 1 for a frame that has labels.
    """

    sums: Tensor
    counts: Tensor

    def mean(self) -> Tensor:
        """() over all that the batch counts."""
        return self.sums.sum() / self.counts.sum().clamp(min=1)

    def each(self) -> Tensor:
        """(B,) what each frame would lose if it were the whole batch."""
        return self.sums / self.counts.clamp(min=1)


class TaskNetwork(nn.Module):
    """The head of a task. Its slots are called heads.TASK.*"""

    @abstractmethod
    def forward(self, features: Any) -> dict[str, Tensor]:
        """Dense outputs of feature maps (B, C, rows, columns), or of one for each level of a pyramid."""

    @abstractmethod
    def decode(self, dense: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the task's `result` reads, in the order of its `outputs`; part of the exported graph."""

    @abstractmethod
    def losses(self, dense: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> dict[str, Loss]:
        """Named terms, whose means are minimised together."""
