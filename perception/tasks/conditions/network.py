"""Recognises weather, light and city from the fused BEV features."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perception.modules.routing.pooling import HIDDEN, PooledFeatures
from perception.tasks.network import Loss, TaskNetwork


class ConditionsHead(TaskNetwork):
    """Classifies the conditions of a frame; the scene filters them over time and routes the next frame by them.

    No gradient reaches the base or a module.

    Args:
        channels: C of the fused features.
        conditions: kind -> values.
    """

    def __init__(self, channels: int, conditions: Mapping[str, Sequence[str]]) -> None:
        super().__init__()
        self.features = PooledFeatures(channels)
        self.kinds = nn.ModuleDict({kind: nn.Linear(HIDDEN, len(values)) for kind, values in conditions.items()})

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Logits (B, number of values) for each kind of condition, from (B, C, rows, columns)."""
        pooled = self.features(features.detach())
        return {kind: head(pooled) for kind, head in self.kinds.items()}

    def decode(self, dense: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """probabilities (B, values), kind by kind; those of each kind sum to 1."""
        return {"probabilities": torch.cat([dense[kind].softmax(dim=1) for kind in self.kinds], dim=1)}

    def losses(self, dense: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> dict[str, Loss]:
        return cross_entropies(self.kinds, dense, labels)


def cross_entropies(kinds: Iterable[str], dense: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> dict[str, Loss]:
    """Cross-entropy of each kind over the frames where it is tagged."""
    return {
        kind: Loss(F.cross_entropy(dense[kind], labels[kind], ignore_index=-1, reduction="none"), labels[kind] >= 0)
        for kind in kinds
    }
