"""Wandering routing: while a recogniser learns, modules run at random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from perception.frame import CONDITIONS, Conditions
from perception.modules.route import Route
from perception.modules.routing.fixed import FixedRouter


class WanderingRouter:
    """Routes each frame as if its conditions were others, drawn anew each time; stands in place of the fixed router.

    Modules before the fusion change the map that conditions are recognised from. Were they in force just where their
    conditions hold, a recogniser would learn to see the module instead of the rain, and never leave a route again.
    """

    def __init__(self, fixed: FixedRouter) -> None:
        self.fixed = fixed

    def __call__(
        self, conditions: Sequence[Conditions], sensors: Mapping[str, Tensor]
    ) -> list[tuple[Route, tuple[str, ...]]]:
        """As of `FixedRouter`."""
        drawn = [
            Conditions(**{kind: values[int(torch.randint(len(values), ()))] for kind, values in CONDITIONS.items()})
            for _ in conditions
        ]
        return self.fixed(drawn, sensors)
