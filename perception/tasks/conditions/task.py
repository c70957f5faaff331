"""Weather, light and city, recognised from the fused BEV features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from perception.datasets.keyframes import Keyframes
from perception.frame import CONDITION_VALUES, CONDITIONS, Frame
from perception.tasks.conditions.metric import ConditionsMetric
from perception.tasks.task import Arrays, Evidence, Output, Task, TaskConfig

if TYPE_CHECKING:
    from perception.tasks.network import TaskNetwork


class ConditionsConfig(TaskConfig):
    added: bool = True


class ConditionsTask(Task[Mapping[str, Sequence[float]]]):
    """Its result: kind of condition -> probability of each value in the order of CONDITIONS; {} if not finite."""

    name = "conditions"
    metric = ConditionsMetric
    Config = ConditionsConfig
    reads = "fused"
    random_routes = True  # else it would learn to recognise the active module instead of the weather
    outputs = (
        Output(
            "probabilities",
            "probability of each value; those of each kind of condition sum to 1",
            CONDITION_VALUES,
            cells=False,
            steady=False,
        ),
    )

    def network(self, channels: int) -> TaskNetwork:
        from perception.tasks.conditions.network import ConditionsHead

        return ConditionsHead(channels)

    def labels(self, frame: Frame, source: Keyframes | None = None) -> dict[str, np.ndarray]:
        """For each kind of condition the index of its value, -1 if unknown."""
        return {
            kind: np.array(values.index(value) if (value := getattr(frame.conditions, kind)) else -1)
            for kind, values in CONDITIONS.items()
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
        found = {kind: [next(left) for _ in values] for kind, values in CONDITIONS.items()}
        return found if np.isfinite(outputs["probabilities"]).all() else {}
