"""Conditions such as weather and light, recognised from pictures alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from perception.datasets.keyframes import Recording
from perception.frame import Arrays, Frame
from perception.grid import BevGrid
from perception.tasks.metric import Counts, Metric, Score, Weights, mean_known
from perception.tasks.outputs import Output
from perception.tasks.task import Evidence, Task, TaskConfig
from perception.taxonomy import Taxonomy

if TYPE_CHECKING:
    from rich.table import Table

    from perception.tasks.network import TaskNetwork


class ConditionsMetric(Metric[Mapping[str, Sequence[float]]]):
    """Accuracy and coverage by kind of condition, over the frames where it is tagged.

    Unknown (no value likelier than all others) is not right; coverage is the share that is not unknown. Ranges are
    ignored.

    accuracy     mean over the kinds
    conditions   accuracy by kind
    """

    shown = ("accuracy", "conditions")

    def counts(self, frame: Frame, result: Mapping[str, Sequence[float]]) -> dict[str, Any]:
        return {}

    def details(self, frame: Frame, result: Mapping[str, Sequence[float]]) -> dict[str, Any]:
        """`counts` (3, kinds): whether each kind is right, whether it is not unknown, and whether it is tagged."""
        tags, kinds = frame.conditions, self.taxonomy.conditions
        counts = np.zeros((3, len(kinds)), np.int64)
        for i, (kind, values) in enumerate(kinds.items()):
            if kind in tags:
                each = list(result.get(kind, ()))
                answered = each.count(max(each, default=0)) == 1
                counts[:, i] = answered and values[int(np.argmax(each))] == tags[kind], answered, True
        return {"counts": counts}

    def scores(self, counts: Sequence[Counts | None], weights: Weights) -> dict[str, Score]:
        kinds = tuple(self.taxonomy.conditions)
        by_scene = weights.sums(counts, lambda own: own["counts"])
        right, answered, tagged = np.moveaxis(
            np.zeros((len(weights.draws), 3, len(kinds))) if by_scene is None else weights.drawn(by_scene), 1, 0
        )
        shares, coverage = (
            np.divide(each, tagged, out=np.full(each.shape, np.nan), where=tagged > 0) for each in (right, answered)
        )
        return {
            "accuracy": Score(mean_known(shares)),
            "conditions": Score(shares, kinds),
            "conditions_coverage": Score(coverage, kinds),
        }

    def report(self, counts: Sequence[Counts]) -> dict[str, Any]:
        """`conditions`: accuracy by kind, None without tagged frames, and `mean`; `conditions_coverage` by kind."""
        scores = self.scores(counts, Weights.of(np.ones(len(counts), bool)))
        found = {name: score.first() for name, score in scores.items()}
        by_kind = {**found["conditions"], "mean": found["accuracy"]}
        return {"conditions": by_kind, "conditions_coverage": found["conditions_coverage"]}

    def tables(self, scores: Mapping[str, Any]) -> list[Table]:
        columns = {"accuracy": scores["conditions"], "coverage": scores["conditions_coverage"]}
        return [self.class_table("conditions", self.taxonomy.conditions, columns, "kind")]


LIMIT = 0.5  # of the output `distance`


class ConditionsConfig(TaskConfig):
    added: bool = True

    def require_taxonomy(self, taxonomy: Taxonomy) -> None:
        if not taxonomy.conditions:
            raise ValueError(f"the taxonomy {taxonomy.name} has no conditions to recognise")

    def require_cameras(self, cameras: bool) -> None:
        if not cameras:
            raise ValueError("conditions are recognised from pictures, so the model needs `camera`")


class ConditionsTask(Task[Mapping[str, Sequence[float]]]):
    """Its result: kind of condition -> probability of each value in the order of the taxonomy; {} if not finite.

    A kind that is not recognised has the same probability for each value: no evidence.
    """

    name = "conditions"
    reads = "inputs"
    metric = ConditionsMetric
    Config = ConditionsConfig

    def __init__(self, config: ConditionsConfig, grid: BevGrid, taxonomy: Taxonomy) -> None:
        super().__init__(config, grid, taxonomy)
        unit = "probability of each value; those of each kind of condition sum to 1"
        far = f"distance d from the training data, as d / (d + limit); above {LIMIT}: unknown"
        sizes = tuple(map(len, taxonomy.conditions.values()))
        self.outputs = (
            Output(
                name="probabilities",
                kind="value",
                unit=unit,
                names=taxonomy.condition_values,
                steady=False,
                groups=sizes,
                doubt=("distance", LIMIT),
            ),
            Output(
                name="distance", kind="value", unit=far, names=tuple(taxonomy.conditions), steady=False, result=None
            ),
        )

    def network(self, channels: int) -> TaskNetwork:
        from perception.tasks.conditions.network import ConditionsRecogniser

        return ConditionsRecogniser(self.taxonomy.conditions)

    def labels(self, frame: Frame) -> dict[str, np.ndarray]:
        """For each kind of condition the index of its value, -1 if unknown."""
        return {
            kind: np.array(values.index(frame.conditions[kind]) if kind in frame.conditions else -1)
            for kind, values in self.taxonomy.conditions.items()
        }

    def evidence(self, result: Mapping[str, Sequence[float]]) -> Evidence:
        return result

    @staticmethod
    def arrays(result: Mapping[str, Sequence[float]]) -> dict[str, np.ndarray]:
        return {"probabilities": np.array([each for values in result.values() for each in values], np.float64)}

    def labelled(self, recording: Recording) -> bool:
        return bool(recording.conditions.known())

    def from_arrays(self, arrays: Arrays) -> Mapping[str, Sequence[float]]:
        left = iter(arrays["probabilities"].tolist())
        if not arrays["probabilities"].size:
            return {}
        return {kind: [next(left) for _ in values] for kind, values in self.taxonomy.conditions.items()}
