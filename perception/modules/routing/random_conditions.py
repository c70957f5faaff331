"""Routing by random conditions, for training the head that recognises conditions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from perception.frame import Conditions
from perception.modules.route import Route
from perception.modules.routing.fixed import FixedRouter


class RandomConditionsRouter:
    """Routes each frame by random conditions; replaces the fixed router.

    Modules before the fusion change the features from which conditions are recognised. If they ran only under their own
    conditions, the head would learn to recognise the active module instead of the weather, and would latch.
    """

    def __init__(self, fixed: FixedRouter) -> None:
        self.fixed = fixed

    def __call__(
        self, conditions: Sequence[Conditions], sensors: Mapping[str, Tensor]
    ) -> list[tuple[Route, tuple[str, ...]]]:
        """As in `FixedRouter`."""
        kinds = self.fixed.bank.conditions.items()
        drawn = [
            Conditions(**{kind: values[int(torch.randint(len(values), ()))] for kind, values in kinds})
            for _ in conditions
        ]
        return self.fixed(drawn, sensors)
