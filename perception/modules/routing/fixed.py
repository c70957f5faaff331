"""Fixed routing: known conditions choose the modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from perception.frame import Conditions
from perception.modules.slot import Route


class FixedRouter:
    """Runs a module on the frames whose known conditions include all that the module asks for.

    An unknown condition matches nothing, so that such a frame uses the base alone.
    """

    def __init__(self, when: Mapping[str, Sequence[str]]) -> None:
        self.when = {name: frozenset(conditions) for name, conditions in when.items()}

    def __call__(self, conditions: Sequence[Conditions]) -> Route:
        """The route for a batch of frames; empty `conditions` mean that nothing is known."""
        weights: dict[str, float | Tensor] = {}
        for name, asked in self.when.items():
            chosen = [asked <= set(c.known()) for c in conditions]
            if all(chosen) and chosen:
                weights[name] = 1.0
            elif any(chosen):
                weights[name] = torch.tensor(chosen, dtype=torch.float32)
        return Route(weights)
