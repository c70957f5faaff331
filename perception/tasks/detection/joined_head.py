"""A trained head with anchors, and the one of classes that were added to it later, as one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from perception.tasks.detection.anchor_head import AnchorHead
from perception.tasks.network import Axis, Loss, TaskNetwork
from perception.tasks.task import part_of, prefixed

_FURTHER = "further"  # prefix of the second head's dense outputs and losses


class JoinedHead(TaskNetwork):
    """Both heads on the same features. Classes of the second follow those of the first, whose outputs do not change."""

    def __init__(self, first: AnchorHead, further: AnchorHead) -> None:
        super().__init__()
        self.first, self.further = first, further

    def forward(self, levels: Tensor | list[Tensor]) -> dict[str, Tensor]:
        return self.first(levels) | prefixed(_FURTHER, self.further(levels))

    def losses(self, dense: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> dict[str, Loss]:
        """Each head learns from the objects of its own classes; the others are background."""
        classes, real, own = labels["classes"], labels["real"], self.first.count
        first = {**labels, "real": real & (classes < own)}
        further = {**labels, "classes": classes - own, "real": real & (classes >= own)}
        return self.first.losses(dense, first) | prefixed(
            _FURTHER, self.further.losses(part_of(_FURTHER, dense), further)
        )

    def unflipped(self, dense: Mapping[str, Tensor], axis: Axis) -> dict[str, Tensor]:
        return self.first.unflipped(dense, axis)

    def decode(self, dense: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As `AnchorHead.decode`, with the classes of both."""
        first, further = self.first.decode(dense), self.further.decode(part_of(_FURTHER, dense))
        further["labels"] = further["labels"] + self.first.count
        return {name: torch.cat([first[name], further[name]], dim=1) for name in first}
