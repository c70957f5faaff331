"""Routing without tags: the conditions are recognised, and choose the modules as tags would."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from perception.config import ClassifierRouting
from perception.frame import CONDITION_VALUES, CONDITIONS, Conditions
from perception.modules.bank import Bank
from perception.modules.route import Route, Weight
from perception.modules.routing.gates import hard
from perception.modules.routing.pooling import after_fusion
from perception.modules.routing.predicates import condition_vectors, possible
from perception.tasks.conditions.network import ConditionHeads, classification


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassifiedRoute(Route):
    """A route with what its losses need."""

    logits: Mapping[str, Tensor]  # of each kind of condition, (B, number of its values)
    tags: tuple[Conditions, ...]  # empty where nothing is known


class ConditionClassifier(ConditionHeads):
    """Tells weather, light and city from the fused map; modules after the fusion run where these are what they ask for.

    In evaluation tags play no part. In training a known tag counts instead of the classifier's opinion, so that a
    module sees only the frames it is for.

    Args:
        config: of the router.
        channels: C of the fused map.
        bank: of the model.
    """

    def __init__(self, config: ClassifierRouting, channels: int, bank: Bank) -> None:
        super().__init__(channels)
        self.config, self.bank = config, bank

    @property
    def names(self) -> list[str]:
        """The modules that it decides about, in the bank's order."""
        return list(self.bank.modules)

    def forward(
        self,
        fused: Tensor,
        route: Route,
        sensors: Mapping[str, Tensor],
        tasks: Sequence[str],
        conditions: Sequence[Conditions],
    ) -> ClassifiedRoute:
        """As `LearnedRouter.forward`."""
        logits = self.logits(fused)
        z = recognised(logits, self.config.confidence)
        if self.training and conditions:
            z = _with_tags(z, conditions)
        weights = {name: self._weight(name, z, sensors, tasks) for name in self.bank.modules}
        by_slot: dict[str, Mapping[str, Weight]] = dict.fromkeys(after_fusion(self.bank), weights)
        return ClassifiedRoute(
            route.weights, by_slot, route.block, None if route.z is None else z,
            static=False, logits=logits, tags=tuple(conditions),
        )  # fmt: skip

    def losses(self, routes: Sequence[ClassifiedRoute], costs: Tensor | None) -> dict[str, Tensor]:
        """Cross-entropy of each kind over the frames where it is known, summed over kinds."""
        parts = [classification(route.logits, route.tags) for route in routes]
        return {"conditions": self.config.supervise * torch.stack(parts).mean()}

    def conditions(self, route: ClassifiedRoute) -> list[Conditions]:
        """What it takes each frame's conditions to be."""
        z = recognised(route.logits, self.config.confidence)
        held = [{value for value, on in zip(CONDITION_VALUES, frame, strict=True) if on} for frame in z.tolist()]
        return [
            Conditions(**{kind: next((v for v in values if v in frame), None) for kind, values in CONDITIONS.items()})
            for frame in held
        ]

    def _weight(self, name: str, z: Tensor, sensors: Mapping[str, Tensor], tasks: Sequence[str]) -> Tensor:
        """(B,): one where all that the module asks for holds."""
        asked = self.bank.asks(name)
        conditions = [i for i, value in enumerate(CONDITION_VALUES) if value in asked]
        weight: Tensor = possible(asked, sensors, tasks).to(z) * z[:, conditions].prod(dim=1)
        return weight


def recognised(logits: Mapping[str, Tensor], confidence: float) -> Tensor:
    """(B, 7) as `condition_vectors`: one for the likeliest value of each kind, if it is as likely as `confidence`."""
    likely = {kind: values.softmax(dim=1) for kind, values in logits.items()}
    return torch.cat([hard(p) * (p.amax(dim=1, keepdim=True) >= confidence) for p in likely.values()], dim=1).detach()


def _with_tags(z: Tensor, conditions: Sequence[Conditions]) -> Tensor:
    """`z` (B, 7), with the tag in place of each kind that is known."""
    tags = condition_vectors(conditions).to(z).split([len(values) for values in CONDITIONS.values()], dim=1)
    parts = z.split([len(values) for values in CONDITIONS.values()], dim=1)
    return torch.cat(
        [torch.where(tag.any(dim=1, keepdim=True), tag, part) for tag, part in zip(tags, parts, strict=True)], dim=1
    )
