"""Weather, light and city recognised from the fused map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perception.frame import CONDITIONS, Conditions
from perception.modules.routing.pooling import HIDDEN, Pooled


class ConditionHeads(nn.Module):
    """What tells the values of each kind of condition apart.

    Args:
        channels: C of the fused map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.features = Pooled(channels)
        self.heads = nn.ModuleDict({kind: nn.Linear(HIDDEN, len(values)) for kind, values in CONDITIONS.items()})

    def logits(self, fused: Tensor) -> dict[str, Tensor]:
        """Of each kind of condition, (B, number of its values), for (B, C, rows, columns)."""
        features = self.features(fused)
        return {kind: head(features) for kind, head in self.heads.items()}


class Recogniser(ConditionHeads):
    """Says what a frame's conditions are and chooses nothing: the scene weighs it over time, and routes the next frame.

    Nor does it shape what it reads: no gradient of it reaches the base or a module.
    """

    def forward(self, fused: Tensor) -> dict[str, Tensor]:
        """Dense outputs weather_logits (B, 3), light_logits and city_logits (B, 2)."""
        return {f"{kind}_logits": values for kind, values in self.logits(fused.detach()).items()}

    def decode(self, dense: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """recognised (B, 7): probabilities in the order of CONDITION_VALUES; those of each kind sum to 1."""
        likely = [dense[f"{kind}_logits"].softmax(dim=1) for kind in CONDITIONS]
        return {"recognised": torch.cat(likely, dim=1)}

    def losses(self, dense: Mapping[str, Tensor], tags: Sequence[Conditions]) -> dict[str, Tensor]:
        return {"recognised": classification({kind: dense[f"{kind}_logits"] for kind in CONDITIONS}, tags)}


def classification(logits: Mapping[str, Tensor], tags: Sequence[Conditions]) -> Tensor:
    """Sum over kinds of the mean cross-entropy over the frames whose condition of this kind is known."""
    total = next(iter(logits.values())).new_zeros(())
    for kind, values in CONDITIONS.items():
        known = [(i, values.index(value)) for i, frame in enumerate(tags) if (value := getattr(frame, kind))]
        if known:
            frames, labels = torch.tensor(known, device=total.device).T
            total = total + F.cross_entropy(logits[kind][frames], labels)
    return total
