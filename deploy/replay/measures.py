"""Measure the metrics of gates on a finished replay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from deploy.replay.results import ReplayResults
from perception.datasets.keyframes import Keyframes
from perception.tasks import TASKS
from perception.tasks.metric import (
    Counts,
    GateMetric,
    Metric,
    Range,
    Recorded,
    Score,
    Scores,
    Subject,
    Unmeasured,
    Weights,
)


class Measures:
    """The metrics of one replay, and what its frames have for them."""

    def __init__(self, finished: ReplayResults) -> None:
        self.finished = finished
        self.metrics: dict[str, Metric[Any]] = {name: task.metric(finished.taxonomy) for name, task in TASKS.items()}
        self._recorded: dict[str, Recorded] = {}
        self._scores: dict[tuple[str, str | None, Range, bool], Scores] = {}

    def tasks(self) -> list[str]:
        """The tasks that the network has."""
        return [name for name in TASKS if name in self.finished.tasks]

    def recorded(self, task: str) -> Recorded:
        """What a metric has of the frames."""
        if task not in self._recorded:
            frames, here = self.finished.statistics(task), self.finished
            counts: Sequence[Counts | None] = [None] * len(frames)
            if task in here.tasks:
                counts = self.metrics[task].recorded(here.replayed, frames)
            self._recorded[task] = Recorded(frames, counts)
        return self._recorded[task]

    def counts(self, task: str) -> Sequence[Counts | None]:
        """See `Recorded.counts`."""
        return self.recorded(task).counts

    def weights(self, condition: str | None = None, range: Range = None) -> Weights:
        """The frames that are known to have all conditions of a text such as rain+night, scene by scene.

        Raises:
            Unmeasured: there is no such frame.
        """
        wanted = frozenset(condition.split("+")) if condition else frozenset()
        frames = self.finished.under(wanted)
        if not frames.any():
            raise Unmeasured(f"no frame is known to be in {condition}")
        return Weights.of(frames, self.finished.scenes, range)

    def score(self, subject: Subject, leaving_out: bool = False) -> Score:
        """The score of a gate, 0 where it is not defined in a draw.

        Args:
            leaving_out: also without each of the scenes in turn.

        Raises:
            Unmeasured: the frames have nothing to measure.
        """
        task, gate = task_of(subject.metric), metrics()[subject.metric]
        if gate.whole:
            return Score(np.array([self.metrics[task].read_whole_score(self.finished.folder, subject.metric)]))
        key = task, subject.condition, subject.range, leaving_out
        if key not in self._scores:
            weights = self.weights(subject.condition, subject.range)
            weights = weights.leaving_out() if leaving_out else weights
            self._scores[key] = self.metrics[task].scores(self.counts(task), weights)
        name = gate.overall if subject.class_ is None else gate.by_class
        score = self._scores[key].get(name or subject.metric)
        if score is None or score.sizes is None:
            raise Unmeasured(gate.missing)
        if subject.class_ is not None:
            score = score.of_class(subject.class_)
        nothing = gate.nothing if subject.class_ is None else gate.nothing_of.format(subject.class_)
        if nothing and np.isnan(score.values[0]).all():
            raise Unmeasured(nothing + subject.where)
        return replace(score, values=np.nan_to_num(score.values))

    def annotated_classes(self, subject: Subject) -> list[str]:
        """Classes for which a gate on each class can be measured."""
        try:
            score = self.score(subject)
        except Unmeasured:
            return []
        there = np.zeros(len(score.classes), bool) if score.sizes is None else score.sizes.any(axis=0)
        return [name for name, present in zip(score.classes, there, strict=True) if present]

    def agreement(self, baseline: Measures, subject: Subject) -> tuple[float, str]:
        """See `Metric.agreement`."""
        task = task_of(subject.metric)
        weights = self.weights(subject.condition, subject.range)
        value, words = self.metrics[task].agreement(self.recorded(task), baseline.recorded(task), weights, subject)
        return float(value), words  # numpy's numbers, and what is compared with them, are no JSON


def task_of(metric: str) -> str:
    """The task that has one of `metrics()` or `agreements()`."""
    return next(name for name, task in TASKS.items() if metric in {**task.metric.gates, **task.metric.agreements})


def measure_whole(folder: Path, names: Sequence[str], source: Keyframes) -> None:
    """Measure those of the named scores that are of a whole replay, for the replay in the folder."""
    for task in dict.fromkeys(task_of(name) for name in names if metrics()[name].whole):
        finished = ReplayResults.load(folder)
        TASKS[task].metric(finished.taxonomy).measure_whole(folder, finished.tokens, source)


def metrics() -> dict[str, GateMetric]:
    return {name: metric for task in TASKS.values() for name, metric in task.metric.gates.items()}


def agreements() -> dict[str, GateMetric]:
    return {name: metric for task in TASKS.values() for name, metric in task.metric.agreements.items()}
