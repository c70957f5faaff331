"""Input-weighted routing: module weights are an input of the graph, so that one graph serves many routes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from torch import Tensor

from perception.frame import Conditions
from perception.modules.bank import Bank
from perception.modules.computation.kinds import KINDS
from perception.modules.route import Route, Weight
from perception.tasks import TASKS


class SteeredRouter:
    """Runs each module with the weight set last; replaces the fixed router of a model.

    Args:
        bank: of the model.
        tasks: of the model's heads.
        always: modules that run on every route, at weight one.
    """

    def __init__(self, bank: Bank, tasks: Sequence[str], always: Collection[str]) -> None:
        self.bank, self.tasks = bank, tuple(tasks)
        self.always = tuple(name for name in bank.modules if name in always)
        self.steered = tuple(name for name in bank.modules if name not in always)
        self.conditional = any(KINDS[part.kind].conditional for m in bank.modules.values() for part in m.single())
        self.weights: Tensor | None = None
        self.z: Tensor | None = None

    def steer(self, weights: Tensor, z: Tensor | None = None) -> None:
        """Set the weights (1, M) of the `steered` modules, and the condition vector (1, Z) of conditional ones."""
        self.weights, self.z = weights, z

    def __call__(
        self, conditions: Sequence[Conditions], sensors: Mapping[str, Tensor]
    ) -> list[tuple[Route, tuple[str, ...]]]:
        """As in `FixedRouter`; conditions and sensors are already encoded in the weights."""
        assert self.weights is not None, "steer before the first forward pass"
        weights: dict[str, Weight] = dict.fromkeys(self.always, 1.0)
        weights |= {name: self.weights[:, i] for i, name in enumerate(self.steered)}
        required = {name: self.bank.requirements(name) & set(TASKS) for name in weights}
        if not any(required.values()):
            return [(Route(weights, z=self.z, static=False), self.tasks)]
        return [
            (Route({n: w for n, w in weights.items() if required[n] <= {task}}, z=self.z, static=False), (task,))
            for task in self.tasks
        ]
