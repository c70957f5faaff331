"""Measure the metrics of gates on a finished replay."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deploy.replay.results import ReplayResults
from perception.datasets.keyframes import Keyframes
from perception.tasks import TASKS
from perception.tasks.judging import GateMetric, Judge


class Measures:
    """The judges of one replay, one per task."""

    def __init__(self, finished: ReplayResults) -> None:
        self.finished = finished
        self.judges = {name: task.judge(finished.of_task(name)) for name, task in TASKS.items() if task.judge}

    def active_judges(self) -> list[Judge]:
        """The judges of the tasks that the network has."""
        return [each for each in self.judges.values() if any(part is not None for part in each.frames.statistics)]

    def judge_of(self, metric: str) -> Judge:
        """The judge that measures one of `metrics()` or `agreements()`."""
        return next(each for each in self.judges.values() if metric in {**each.metrics, **each.agreements})


def measure_whole(folder: Path, names: Sequence[str], source: Keyframes) -> None:
    """Measure those of the named scores that are of a whole replay, for the replay in the folder."""
    whole = {name for name in names if metrics()[name].whole}
    if whole:
        for judge in Measures(ReplayResults.load(folder)).judges.values():
            if whole & judge.metrics.keys():
                judge.measure_whole(source)


def metrics() -> dict[str, GateMetric]:
    """The scores of all tasks."""
    return {name: metric for task in TASKS.values() if task.judge for name, metric in task.judge.metrics.items()}


def agreements() -> dict[str, GateMetric]:
    """The agreements of all tasks."""
    return {name: metric for task in TASKS.values() if task.judge for name, metric in task.judge.agreements.items()}
