"""Accuracy of the recognised conditions on tagged frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from perception.datasets.keyframes import Keyframes
from perception.frame import Frame
from perception.grid import BevGrid
from perception.strict_json import shown
from perception.tasks.task import Metric

if TYPE_CHECKING:
    from rich.table import Table


class ConditionsMetric(Metric[Mapping[str, Sequence[float]]]):
    """Accuracy by kind of condition, over the frames where it is tagged."""

    def __init__(self, source: Keyframes, grid: BevGrid) -> None:
        super().__init__(source, grid)
        self._right: list[dict[str, bool]] = []  # for each frame: kind that is tagged -> correct

    def add(self, frame: Frame, result: Mapping[str, Sequence[float]]) -> None:
        tags = self.source.conditions(frame.token)
        right = {}
        for kind, values in self.source.taxonomy.conditions.items():
            if kind in tags:
                right[kind] = kind in result and values[int(np.argmax(result[kind]))] == tags[kind]
        self._right.append(right)

    def scores(self) -> dict[str, Any]:
        """`conditions`: accuracy by kind, None without tagged frames, and their `mean`."""
        part = self.part(np.ones(len(self._right), bool))
        return {"conditions": {**part["conditions"], "mean": part["accuracy"]}}

    def part(self, frames: np.ndarray, bounds: tuple[float, float] | None = None) -> dict[str, Any]:
        """`accuracy`, the mean over the kinds, and `conditions` by kind; ranges are ignored."""
        by_kind = {}
        for kind in self.source.taxonomy.conditions:
            right = [each[kind] for i, each in enumerate(self._right) if frames[i] and kind in each]
            by_kind[kind] = float(np.mean(right)) if right else None
        known = [each for each in by_kind.values() if each is not None]
        return {"accuracy": float(np.mean(known)) if known else None, "conditions": by_kind}

    def tables(self, scores: Mapping[str, Any]) -> list[Table]:
        from rich.table import Table

        table = Table(title="conditions", show_footer=True)
        table.add_column("kind", footer="mean")
        table.add_column("accuracy", shown(scores["conditions"]["mean"]), justify="right")
        for kind in self.source.taxonomy.conditions:
            table.add_row(kind, shown(scores["conditions"][kind]))
        return [table]
