"""Routing in a training by several processes: all run the same modules, each on its own frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from perception.distributed import gathered, own
from perception.frame import Conditions
from perception.modules.route import Route, Weight

Routes = list[tuple[Route, tuple[str, ...]]]


class Router(Protocol):
    """What routes the frames of a batch."""

    def __call__(self, conditions: Sequence[Conditions], sensors: Mapping[str, Tensor]) -> Routes: ...


class SharedRouter:
    """Routes the frames of all processes as one batch; replaces the router of a model in training.

    So all processes run the same parts of the network equally often, which synchronised normalisations need, also where
    a module runs on frames of another process alone.

    Args:
        router: of the model.
        kinds: kind of condition -> its values.
    """

    def __init__(self, router: Router, kinds: Mapping[str, Sequence[str]]) -> None:
        self.router, self.kinds = router, kinds

    def __call__(self, conditions: Sequence[Conditions], sensors: Mapping[str, Tensor]) -> Routes:
        """As in `FixedRouter`, for the frames of this process."""
        every = self._gathered(conditions, next(iter(sensors.values())).device)
        parts: dict[int, Tensor] = {}  # by whole tensor; routes with the same weights keep the same object

        def part(weight: Tensor) -> Tensor:
            return parts.setdefault(id(weight), own(weight))

        def parts_of(weights: Mapping[str, Weight]) -> dict[str, Weight]:
            return {name: part(w) if isinstance(w, Tensor) else w for name, w in weights.items()}

        routes = self.router(every, {name: gathered(there) for name, there in sensors.items()})
        return [
            (replace(route, weights=parts_of(route.weights), z=None if route.z is None else part(route.z)), tasks)
            for route, tasks in routes
        ]

    def _gathered(self, conditions: Sequence[Conditions], device: torch.device) -> list[Conditions]:
        """The conditions of the frames of all processes."""
        places = [
            [values.index(frame[kind]) if kind in frame else -1 for kind, values in self.kinds.items()]
            for frame in conditions
        ]
        return [
            Conditions(**{kind: self.kinds[kind][i] for kind, i in zip(self.kinds, frame, strict=True) if i >= 0})
            for frame in gathered(torch.tensor(places, device=device)).tolist()
        ]
