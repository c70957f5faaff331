"""Conditions such as weather and light, recognised from the fused BEV features or from pretrained picture features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from perception.datasets.keyframes import Keyframes
from perception.frame import Frame
from perception.grid import BevGrid
from perception.tasks.conditions.metric import ConditionsMetric
from perception.tasks.task import Arrays, Evidence, Output, Task, TaskConfig
from perception.taxonomy import Taxonomy

if TYPE_CHECKING:
    from perception.tasks.network import TaskNetwork

LIMIT = 0.5  # of the output `distance`


class ConditionsConfig(TaskConfig):
    added: bool = True
    # bev: trained by gradient. imagenet: pictures alone, fitted in closed form; unknown is an answer (`recogniser.py`).
    features: Literal["bev", "imagenet"] = "bev"

    def require_taxonomy(self, taxonomy: Taxonomy) -> None:
        if not taxonomy.conditions:
            raise ValueError(f"the taxonomy {taxonomy.name} has no conditions to recognise")

    def require_cameras(self, cameras: bool) -> None:
        if self.features == "imagenet" and not cameras:
            raise ValueError("`features: imagenet` needs pictures, so a model with `camera`")


class ConditionsTask(Task[Mapping[str, Sequence[float]]]):
    """Its result: kind of condition -> probability of each value in the order of the taxonomy; {} if not finite.

    A kind that is not recognised has the same probability for each value: no evidence.
    """

    name = "conditions"
    metric = ConditionsMetric
    Config = ConditionsConfig

    def __init__(self, config: ConditionsConfig, grid: BevGrid, taxonomy: Taxonomy) -> None:
        super().__init__(config, grid, taxonomy)
        unit = "probability of each value; those of each kind of condition sum to 1"
        self.outputs = (Output("probabilities", unit, taxonomy.condition_values, cells=False, steady=False),)
        if config.features == "imagenet":
            self.reads = "inputs"
            unit = f"distance d from the training data, as d / (d + limit); above {LIMIT}: unknown"
            kinds = tuple(taxonomy.conditions)
            self.outputs += (Output("distance", unit, kinds, cells=False, steady=False),)
        else:
            self.reads = "fused"
            self.random_routes = True  # else it would learn to recognise the active module instead of the weather

    def network(self, channels: int) -> TaskNetwork:
        from perception.tasks.conditions.network import ConditionsHead
        from perception.tasks.conditions.recogniser import ConditionsRecogniser

        if self.config.features == "imagenet":
            return ConditionsRecogniser(self.taxonomy.conditions)
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
        if not all(np.isfinite(values).all() for values in outputs.values()):
            return {}
        for kind, distance in zip(found, outputs.get("distance", ()), strict=False):
            if distance > LIMIT:
                found[kind] = [1 / len(found[kind])] * len(found[kind])
        return found
