"""Conditions such as weather and light, recognised from the fused BEV features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from perception.datasets.keyframes import Keyframes
from perception.frame import Frame
from perception.grid import BevGrid
from perception.tasks.conditions.metric import ConditionsMetric
from perception.tasks.task import Arrays, Evidence, Output, Task, TaskConfig
from perception.taxonomy import Taxonomy

if TYPE_CHECKING:
    from perception.tasks.network import TaskNetwork


class ConditionsConfig(TaskConfig):
    added: bool = True

    def require_taxonomy(self, taxonomy: Taxonomy) -> None:
        if not taxonomy.conditions:
            raise ValueError(f"the taxonomy {taxonomy.name} has no conditions to recognise")


class ConditionsTask(Task[Mapping[str, Sequence[float]]]):
    """Its result: kind of condition -> probability of each value in the order of the taxonomy; {} if not finite."""

    name = "conditions"
    metric = ConditionsMetric
    Config = ConditionsConfig
    reads = "fused"
    random_routes = True  # else it would learn to recognise the active module instead of the weather

    def __init__(self, config: ConditionsConfig, grid: BevGrid, taxonomy: Taxonomy) -> None:
        super().__init__(config, grid, taxonomy)
        unit = "probability of each value; those of each kind of condition sum to 1"
        self.outputs = (Output("probabilities", unit, taxonomy.condition_values, cells=False, steady=False),)

    def network(self, channels: int) -> TaskNetwork:
        from perception.tasks.conditions.network import ConditionsHead

        return ConditionsHead(channels, self.taxonomy.conditions)

    def labels(self, frame: Frame, source: Keyframes | None = None) -> dict[str, np.ndarray]:
        """For each kind of condition the index of its value, -1 if unknown."""
        return {
            kind: np.array(values.index(frame.conditions[kind]) if kind in frame.conditions else -1)
            for kind, values in self.taxonomy.conditions.items()
        }

    def evidence(self, result: Mapping[str, Sequence[float]]) -> Evidence:
        return result

    @staticmethod
    def pack(result: Mapping[str, Sequence[float]]) -> dict[str, np.ndarray]:
        return {kind: np.array(values) for kind, values in result.items()}

    @staticmethod
    def unpack(arrays: Arrays) -> Mapping[str, Sequence[float]]:
        return {kind: values.tolist() for kind, values in arrays.items()}

    def labelled(self, source: Keyframes, token: str) -> bool:
        return bool(source.conditions(token).known())

    def result(self, outputs: Arrays) -> Mapping[str, Sequence[float]]:
        left = iter(outputs["probabilities"].tolist())
        found = {kind: [next(left) for _ in values] for kind, values in self.taxonomy.conditions.items()}
        return found if np.isfinite(outputs["probabilities"]).all() else {}
