"""Accuracy and coverage of the recognised conditions on tagged frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from perception.frame import Frame
from perception.io.files import shown
from perception.tasks.metric import Counts, Metric, Score, Weights, mean_known

if TYPE_CHECKING:
    from rich.table import Table


class ConditionsMetric(Metric[Mapping[str, Sequence[float]]]):
    """Accuracy and coverage by kind of condition, over the frames where it is tagged.

    Unknown (no value likelier than all others) is not right; coverage is the share that is not unknown. Ranges are
    ignored.

    accuracy     mean over the kinds
    conditions   accuracy by kind
    """

    shown = ("accuracy", "conditions")

    def counts(self, frame: Frame, result: Mapping[str, Sequence[float]]) -> dict[str, Any]:
        """Nothing that gates are about."""
        return {}

    def details(self, frame: Frame, result: Mapping[str, Sequence[float]]) -> dict[str, Any]:
        """`counts` (3, kinds): whether each kind is right, whether it is not unknown, and whether it is tagged."""
        tags = {} if self.source is None else self.source.conditions(frame.token)
        kinds = self.taxonomy.conditions
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
        from rich.table import Table

        table = Table(title="conditions", show_footer=True)
        table.add_column("kind", footer="mean")
        table.add_column("accuracy", shown(scores["conditions"]["mean"]), justify="right")
        table.add_column("coverage", justify="right")
        for kind in self.taxonomy.conditions:
            table.add_row(kind, shown(scores["conditions"][kind]), shown(scores["conditions_coverage"][kind]))
        return [table]
