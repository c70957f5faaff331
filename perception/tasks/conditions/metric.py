"""Accuracy and coverage of the recognised conditions on tagged frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from perception.datasets.keyframes import Keyframes
from perception.frame import Frame
from perception.grid import BevGrid
from perception.strict_json import shown
from perception.tasks.metric import Metric

if TYPE_CHECKING:
    from rich.table import Table


class ConditionsMetric(Metric[Mapping[str, Sequence[float]]]):
    """Accuracy and coverage by kind of condition, over the frames where it is tagged.

    Unknown (no value likelier than all others) is not right; coverage is the share that is not unknown.
    """

    def __init__(self, source: Keyframes, grid: BevGrid) -> None:
        super().__init__(source, grid)
        # For each frame: kind that is tagged -> correct, and kind that is tagged -> not unknown.
        self._right: list[dict[str, bool]] = []
        self._answered: list[dict[str, bool]] = []

    def add(self, frame: Frame, result: Mapping[str, Sequence[float]]) -> None:
        tags = self.source.conditions(frame.token)
        right, answered = {}, {}
        for kind, values in self.source.taxonomy.conditions.items():
            if kind in tags:
                each = list(result.get(kind, ()))
                answered[kind] = each.count(max(each, default=0)) == 1
                right[kind] = answered[kind] and values[int(np.argmax(each))] == tags[kind]
        self._right.append(right)
        self._answered.append(answered)

    def scores(self) -> dict[str, Any]:
        """`conditions`: accuracy by kind, None without tagged frames, and `mean`; `conditions_coverage` by kind."""
        every = np.ones(len(self._right), bool)
        part, coverage = self.part(every), self._shares(self._answered, every)
        return {"conditions": {**part["conditions"], "mean": part["accuracy"]}, "conditions_coverage": coverage}

    def part(self, frames: np.ndarray, bounds: tuple[float, float] | None = None) -> dict[str, Any]:
        """`accuracy`, the mean over the kinds, and `conditions` by kind; ranges are ignored."""
        by_kind = self._shares(self._right, frames)
        known = [each for each in by_kind.values() if each is not None]
        return {"accuracy": float(np.mean(known)) if known else None, "conditions": by_kind}

    def _shares(self, found: Sequence[Mapping[str, bool]], frames: np.ndarray) -> dict[str, float | None]:
        """The share of these frames where it is found, by kind; None where no frame is tagged."""
        shares: dict[str, float | None] = {}
        for kind in self.source.taxonomy.conditions:
            own = [each[kind] for each, chosen in zip(found, frames, strict=True) if chosen and kind in each]
            shares[kind] = float(np.mean(own)) if own else None
        return shares

    def tables(self, scores: Mapping[str, Any]) -> list[Table]:
        from rich.table import Table

        table = Table(title="conditions", show_footer=True)
        table.add_column("kind", footer="mean")
        table.add_column("accuracy", shown(scores["conditions"]["mean"]), justify="right")
        table.add_column("coverage", justify="right")
        for kind in self.source.taxonomy.conditions:
            table.add_row(kind, shown(scores["conditions"][kind]), shown(scores["conditions_coverage"][kind]))
        return [table]
