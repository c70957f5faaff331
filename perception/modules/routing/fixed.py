"""Fixed routing: the known conditions, sensors and task of a frame select its modules."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from perception.frame import Conditions
from perception.modules.bank import Bank
from perception.modules.computation.kinds import KINDS
from perception.modules.route import Route, Weight
from perception.modules.routing.predicates import Facts, condition_vectors, facts
from perception.tasks import TASKS
from perception.taxonomy import SENSORS


class FixedRouter:
    """Runs a module on the frames that are known to meet all its requirements.

    Unknown counts as not met, so a frame with unknown conditions uses the base alone.

    Args:
        bank: of the model; modules that are added to it later are routed too.
        tasks: of the model's heads.
    """

    def __init__(self, bank: Bank, tasks: Sequence[str]) -> None:
        self.bank, self.tasks = bank, tuple(tasks)
        self._settled: list[tuple[Route, tuple[str, ...]]] | None = None

    def __call__(
        self, conditions: Sequence[Conditions], sensors: Mapping[str, Tensor]
    ) -> list[tuple[Route, tuple[str, ...]]]:
        """Routes for a batch of frames, each with the tasks that it serves.

        Args:
            conditions: of each frame; empty where nothing is known.
            sensors: for each sensor of the model, which frames have it (B,).
        """
        if self._settled is not None:
            return self._settled
        return self._routes({name: self.bank.requirements(name) for name in self.bank.modules}, conditions, sensors)

    def settle(self, conditions: Conditions, missing: Collection[str] = ()) -> list[tuple[Route, tuple[str, ...]]]:
        """Use one route for all further frames: under these conditions, with all sensors but the missing ones.

        Only the `when` of modules counts, because the branch of a missing sensor returns zeros anyway.
        """
        requirements = {name: frozenset(module.when) for name, module in self.bank.modules.items()}
        sensors = {name: torch.tensor([name not in missing]) for name in SENSORS}
        self._settled = self._routes(requirements, [conditions], sensors)
        return self._settled

    def _routes(
        self, requirements: Mapping[str, Facts], conditions: Sequence[Conditions], sensors: Mapping[str, Tensor]
    ) -> list[tuple[Route, tuple[str, ...]]]:
        required = frozenset[str]().union(*requirements.values())
        z = (
            condition_vectors(conditions, self.bank.condition_values)
            if any(KINDS[part.kind].conditional for m in self.bank.modules.values() for part in m.single())
            else None
        )
        if self.bank.active is not None:
            return [(replace(self.bank.active, z=z), self.tasks)]
        if not required & {*SENSORS, *(f"no-{s}" for s in SENSORS)}:
            sensors = {}  # reading them would specialise an exported graph to its example input
        routes: list[tuple[Route, tuple[str, ...]]] = []
        shared: dict[tuple[bool, ...], Weight] = {}
        for task in self.tasks if required & set(TASKS) else (None,):
            weights = fixed_weights(requirements, facts(conditions, sensors, task), shared)
            routes.append((Route(weights, z=z), self.tasks if task is None else (task,)))
        return routes


def fixed_weights(
    requirements: Mapping[str, Facts], frames: Sequence[Facts], shared: dict[tuple[bool, ...], Weight] | None = None
) -> dict[str, Weight]:
    """Weights of the modules that run: 1.0 on all frames, or (B,) ones and zeros.

    Args:
        requirements: the facts that each module requires.
        frames: the facts of each frame.
        shared: cache of weights, so that equal ones are the same object.
    """
    shared = {} if shared is None else shared
    weights: dict[str, Weight] = {}
    for name, required in requirements.items():
        chosen = tuple(required <= known for known in frames)
        if any(chosen):
            weight = 1.0 if all(chosen) else torch.tensor(chosen, dtype=torch.float32)
            weights[name] = shared.setdefault(chosen, weight)
    return weights
