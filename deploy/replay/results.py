"""The results of a finished replay, read from its folder to be shown, and measured for gates."""

from __future__ import annotations

import json
import mmap
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson

from deploy.replay.provenance import PROVENANCE, ReplayProvenance
from perception.datasets.keyframes import Keyframes
from perception.errors import InputError
from perception.tasks import TASKS
from perception.tasks.metric import (
    Counts,
    GateMetric,
    Metric,
    Range,
    Recorded,
    ReplayedFrames,
    Score,
    Scores,
    Subject,
    Unmeasured,
    Weights,
)
from perception.tasks.task import Task
from perception.taxonomy import Taxonomy

STATISTICS, LATENCY, REPORT, SOURCES = "statistics.jsonl", "latency.json", "report.html", "sources.json"
VIEWER = "results.mcap"  # for Foxglove and Rerun


class FrameColumns(NamedTuple):
    """What statistics.jsonl says of F frames, without what their tasks counted."""

    starts: np.ndarray  # (F,) int, first byte of the frame's line
    tokens: Sequence[str]
    scenes: np.ndarray  # (F,) int, sorted by their names
    times: np.ndarray  # (F,) int64 us
    egos: np.ndarray  # (F, 2) m, position of the vehicle in the global frame
    conditions: np.ndarray  # (F,) int, index into `condition_sets`
    tasks: np.ndarray  # (F,) int, those that ran, index into `task_sets`
    blind: np.ndarray  # (F,) bool, without any sensor that the network takes
    not_finite: np.ndarray  # (F,) bool, with an output of the network that is not finite
    condition_sets: Sequence[frozenset[str]]
    task_sets: Sequence[frozenset[str]]

    @staticmethod
    def read(path: Path) -> FrameColumns:
        """Reads the file line by line. InputError if it cannot be read or was written by an earlier version."""
        tokens, numbers, egos, start = list[str](), array("q"), array("d"), 0  # six numbers of a frame
        scenes, conditions, tasks = dict[str, int](), dict[frozenset[str], int](), dict[frozenset[str], int]()
        try:
            with path.open("rb") as file:
                for text in file:
                    line = orjson.loads(text)
                    if "sensors" not in line:
                        raise InputError(f"{path}: was written by an earlier version; replay again")
                    tokens.append(line["token"])
                    egos.extend(line["ego"])
                    scene = scenes.setdefault(line["scene"], len(scenes))
                    condition = conditions.setdefault(frozenset(line["conditions"]), len(conditions))
                    task = tasks.setdefault(frozenset(line["tasks"]), len(tasks))
                    flags = line["blind"] + 2 * bool(line["not_finite"])
                    numbers.extend((start, scene, line["timestamp"], condition, task, flags))
                    start += len(text)
        except (OSError, ValueError):
            raise _unfinished_error(path.parent, path.name) from None
        starts, scene_of, times, condition_of, tasks_of, flags_of = np.array(numbers, np.int64).reshape(-1, 6).T
        by_name, places = np.argsort(np.argsort(np.array(list(scenes), str))), np.array(egos, np.float64).reshape(-1, 2)
        blind, not_finite = flags_of % 2 == 1, flags_of >= 2
        return FrameColumns(
            starts, tokens, by_name[scene_of], times, places, condition_of, tasks_of, blind, not_finite,
            list(conditions), list(tasks),
        )  # fmt: skip

    def select(self, index: np.ndarray) -> FrameColumns:
        """The frames at the integer index (M,)."""
        arrays = {name: each[index] for name, each in self._asdict().items() if isinstance(each, np.ndarray)}
        return self._replace(tokens=[self.tokens[i] for i in index.tolist()], **arrays)


class _Lines(Sequence[Any]):
    """Lines of statistics.jsonl, each read when it is asked for, or what they have for a task that did run."""

    def __init__(self, path: Path, starts: np.ndarray, task: str | None = None) -> None:
        self._path, self._starts, self._task = path, starts, task

    @cached_property
    def _content(self) -> mmap.mmap:
        try:
            with self._path.open("rb") as file:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError):
            raise _unfinished_error(self._path.parent, self._path.name) from None

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, i: Any) -> Any:
        start = int(self._starts[i])
        end = self._content.find(b"\n", start)
        line = orjson.loads(self._content[start : end if end >= 0 else None])
        return line if self._task is None else line["tasks"].get(self._task)


@dataclass(frozen=True)
class ReplayResults:
    """A finished replay, by the files in its folder. Each is read on first use. Only the `chosen` frames count."""

    folder: Path
    chosen: FrameColumns | None = None

    @staticmethod
    def load(folder: Path) -> ReplayResults:
        """The replay in this folder. InputError if there is no finished one with frames to judge."""
        results = ReplayResults(folder)
        if not len(results):
            raise InputError(f"{folder / STATISTICS}: no frame was replayed; there is nothing to judge")
        return results

    @cached_property
    def frames(self) -> FrameColumns:
        """The frames that count. InputError if statistics.jsonl cannot be read."""
        return FrameColumns.read(self.folder / STATISTICS) if self.chosen is None else self.chosen

    @property
    def lines(self) -> Sequence[dict[str, Any]]:
        """Those of statistics.jsonl, one for each frame, each read when it is asked for."""
        return _Lines(self.folder / STATISTICS, self.frames.starts)

    def summary(self, tasks: Mapping[str, Task[Any]]) -> dict[str, Any]:
        """Counts, latencies and files, for `--json`."""
        files = {what: file for task in tasks.values() for what, file in task.files.items()}
        files |= {"sources": SOURCES, "latency": LATENCY, "report": REPORT, "provenance": PROVENANCE}
        return {
            "frames": self.latency["frames"],
            "resumed_at_frame": ReplayProvenance.load(self.folder).resumed_at_frame,
            "not_finite": len(self.not_finite),
            "latency_ms": self.latency["stages"],
            **{name: str(self.folder / file) for name, file in files.items()},
            **({"viewer": str(self.folder / VIEWER)} if (self.folder / VIEWER).exists() else {}),
        }

    def only(self, tokens: Sequence[str]) -> ReplayResults:
        """The replay with only these frames, in this order."""
        number = {token: i for i, token in enumerate(self.tokens)}
        index = np.array([number[token] for token in tokens], np.int64)
        same = np.array_equal(index, np.arange(len(self)))
        return self if same else ReplayResults(self.folder, self.frames.select(index))

    def __len__(self) -> int:
        return len(self.frames.tokens)

    @property
    def tokens(self) -> Sequence[str]:
        return self.frames.tokens

    @cached_property
    def scenes(self) -> np.ndarray:
        """The scene (F,) int of each frame, counted from 0."""
        return np.asarray(np.unique(self.frames.scenes, return_inverse=True)[1])

    @property
    def conditions(self) -> list[str]:
        """The conditions that some frames have but not all, such as rain and clear."""
        known = [self.frames.condition_sets[i] for i in np.unique(self.frames.conditions)]
        return sorted(frozenset.union(*known) - frozenset.intersection(*known))

    def under(self, conditions: frozenset[str]) -> np.ndarray:
        """(F,) bool, whether a frame is known to have all of these conditions."""
        return np.array([conditions <= each for each in self.frames.condition_sets], bool)[self.frames.conditions]

    @property
    def tasks(self) -> frozenset[str]:
        """The tasks that ran in any frame."""
        return frozenset().union(*(self.frames.task_sets[i] for i in np.unique(self.frames.tasks)))

    def statistics(self, task: str) -> Sequence[dict[str, Any] | None]:
        """What each frame has for the metric of a task, read when it is asked for; None: the task did not run."""
        return _Lines(self.folder / STATISTICS, self.frames.starts, task)

    @property
    def replayed(self) -> ReplayedFrames:
        frames = self.frames
        groups = frames.scenes * len(frames.condition_sets) + frames.conditions
        return ReplayedFrames(self.folder, frames.tokens, frames.egos, groups)

    @cached_property
    def taxonomy(self) -> Taxonomy:
        return ReplayProvenance.load(self.folder).taxonomy

    @property
    def dropped(self) -> tuple[int, int]:
        """The number of missing keyframes, and of frames without any sensor that the network takes.

        Gaps are divided by the median period of their drive: with keyframes every 0.5 s, two are missing in a gap of
        1.5 s. A frame that is not later than the one before it counts as a missing one.
        """
        missing = 0
        for scene in np.unique(self.scenes):
            gaps = np.diff(self.frames.times[self.scenes == scene])
            later = gaps[gaps > 0]
            missing += len(gaps) - len(later)
            if len(later):
                missing += int(np.rint(later / np.median(later) - 1).clip(0).sum())
        return missing, int(self.frames.blind.sum())

    @property
    def not_finite(self) -> list[str]:
        """Tokens of the frames with a non-finite output of the network."""
        return [self.tokens[i] for i in np.flatnonzero(self.frames.not_finite)]

    @cached_property
    def latency(self) -> dict[str, Any]:
        """`Latency.summary`, and `behind` (ms). InputError if there is no latency.json."""
        return dict(self._json(LATENCY))

    @property
    def sources(self) -> list[dict[str, Any]]:
        """`Counts.summary` of each drive. InputError if there is no sources.json."""
        return list(self._json(SOURCES))

    def _json(self, name: str) -> Any:
        try:
            return json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise _unfinished_error(self.folder, name) from None


def _unfinished_error(folder: Path, name: str) -> InputError:
    return InputError(f"{folder}: holds no finished replay (no readable {name}); replay again")


class Measures:
    """The metrics of one replay, and what its frames have for them."""

    def __init__(self, finished: ReplayResults) -> None:
        self.finished = finished
        self.metrics: dict[str, Metric[Any]] = {name: task.metric(finished.taxonomy) for name, task in TASKS.items()}
        self._recorded: dict[str, Recorded] = {}
        self._scores: dict[tuple[str, str | None, Range, bool], Scores] = {}

    def tasks(self) -> list[str]:
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
        """The score of a gate, also without each of the scenes in turn, if wanted.

        Where it is not defined in a draw, it is 0 or, if lower is better, NaN.

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
        if (gate.item or gate.lower_is_better) and np.isnan(score.values[0]).all():
            of_class = f" of {subject.class_}" if subject.class_ else ""
            raise Unmeasured(f"there is no {gate.item or subject.metric}{of_class}{subject.where}")
        return score if gate.lower_is_better else replace(score, values=np.nan_to_num(score.values))

    def annotated_classes(self, subject: Subject) -> list[str]:
        """Classes for which a gate on each class can be measured."""
        try:
            score = self.score(subject)
        except Unmeasured:
            return []
        there = np.zeros(len(score.classes), bool) if score.sizes is None else score.sizes.any(axis=0)
        return [name for name, present in zip(score.classes, there, strict=True) if present]

    def agreement(self, baseline: Measures, subject: Subject) -> tuple[float, str]:
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
