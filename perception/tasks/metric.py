"""The interface by which a task is scored, by an evaluation and by the gates of a replay. numpy only.

`counts` says of one frame what there was to find and what was found; `scores` adds up the counts of frames. Everything
that is said of a network comes from these two: the scores of all frames, of slices, of corrupted frames, intervals over
scenes, and verdicts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

import numpy as np

from perception.frame import Frame
from perception.grid import BevGrid
from perception.io.files import format_number
from perception.taxonomy import Taxonomy

if TYPE_CHECKING:
    from rich.table import Table

    from perception.datasets.keyframes import Keyframes

Result = TypeVar("Result")
Range = tuple[float, float] | None  # m from the vehicle: from, to; None: all
Counts = Mapping[str, Any]  # of one frame, as JSON, or with arrays where JSON has lists
RING = 10.0  # m, width of the rings around the vehicle in which tasks count, so that ranges need no second count
Kind = Literal["found", "missed", "right", "extra"]  # annotated and found or not, detected rightly or not


class Unmeasured(Exception):
    """The reason why there is no measurement, such as frames without annotations."""


class Subject(NamedTuple):
    """The metric of a gate, and the frames that it is measured on."""

    metric: str
    class_: str | None = None  # None: over all classes
    condition: str | None = None  # such as rain or rain+night; None: all frames
    range: Range = None
    score: float = 0.0  # of an agreement: minimum score of detections
    metres: float = 1.0  # of an agreement: maximum distance between two matching detections

    @property
    def where(self) -> str:
        """Description of the frames, such as ' in rain within 0 to 30 m'; '' for all."""
        bounds = " within {:g} to {:g} m".format(*self.range) if self.range else ""
        return (f" in {self.condition}" if self.condition else "") + bounds


@dataclass(frozen=True)
class GateMetric:
    """A metric available to gates."""

    # Names in the taxonomy that it can be measured for; None: only for all together.
    classes: Literal["class_names", "map_names", "point_names", "voxel_names"] | None = None
    each: bool = False  # a gate without a class applies to each annotated class
    ranged: bool = True  # it can be measured for a range
    step: float | None = None  # m, of which the bounds of ranges are multiples
    lower_is_better: bool = False  # the score is an error
    whole: bool = False  # measured once for all classes and frames of a replay (`Metric.measure_whole`)
    overall: str = ""  # its name among `Metric.scores` without a class; "": its own
    by_class: str = ""  # likewise, of its values for each class
    missing: str = ""  # why it is not measured if no frame has anything to count
    item: str = ""  # what it counts; without any it is not measured. "": it is 0 then, unless lower is better

    @property
    def bound(self) -> str:
        """The key of a gate on its value."""
        return "at_most" if self.lower_is_better else "at_least"

    def names(self, taxonomy: Taxonomy) -> tuple[str, ...]:
        """The classes that it can be measured for."""
        return () if self.classes is None else getattr(taxonomy, self.classes)


@dataclass(frozen=True)
class Weights:
    """How often each of F frames counts in R draws of their S scenes, and up to which distance."""

    frames: np.ndarray  # (F,) bool, frames that count at all
    scenes: np.ndarray  # (F,) int, the scene of each of these frames, from 0 on; 0 for the others
    draws: np.ndarray  # (R, S) multiplicity of each scene
    range: Range = None  # of what counts

    @staticmethod
    def of(frames: np.ndarray, scenes: Sequence[Any] | np.ndarray | None = None, range: Range = None) -> Weights:
        """Each of these frames (F,) once; without scenes (F,), they are one scene."""
        numbers, count = np.zeros(len(frames), np.int64), 1
        if scenes is not None:
            own, numbers[frames] = np.unique(np.asarray(scenes)[frames], return_inverse=True)
            count = len(own)
        return Weights(frames, numbers, np.ones((1, count)), range)

    def leaving_out(self) -> Weights:
        """All scenes, then all but one of them in turn: R = S + 1."""
        return replace(self, draws=leave_one_out(self.draws.shape[1]))

    def sums(self, counts: Sequence[Counts | None], of: Callable[[Counts], np.ndarray | None]) -> np.ndarray | None:
        """(S, ...) of what `of` counts in the frames of each scene; None if no frame that counts has any."""
        sums: np.ndarray | None = None
        for i in np.flatnonzero(self.frames):
            own = counts[i]
            numbers = None if own is None else of(own)
            if numbers is not None:
                if sums is None:
                    sums = np.zeros((self.draws.shape[1], *np.shape(numbers)))
                sums[self.scenes[i]] += numbers
        return sums

    def drawn(self, sums: np.ndarray) -> np.ndarray:
        """(R, ...) sums over the scenes (S, ...) of each draw."""
        return np.asarray(np.tensordot(self.draws, sums, 1))


@dataclass(frozen=True)
class Score:
    """A score in each of R draws of scenes."""

    values: np.ndarray  # (R,), or (R, classes); NaN: not defined
    classes: Sequence[str] = ()  # their names; empty: it is of all classes together
    sizes: np.ndarray | None = None  # (S, C) what each scene has to score, of C kinds; None: nothing to count
    items: np.ndarray | None = None  # (S, ...), or (S, ..., classes), the counts of each scene that it is made of

    def of_class(self, name: str) -> Score:
        """The score of one class."""
        i = [self.classes.index(name)]
        return replace(
            self,
            values=self.values[:, i[0]],
            classes=(),
            sizes=None if self.sizes is None else self.sizes[:, i],
            items=None if self.items is None else self.items[..., i],
        )

    def same(self, other: Score) -> bool:
        return self.items is not None and other.items is not None and np.array_equal(self.items, other.items)

    def first(self) -> Any:
        """The value in the first draw for JSON: an integer for an amount, by name with classes, None if undefined."""
        value = self.values[0]
        if self.classes:
            return {name: None if np.isnan(v) else float(v) for name, v in zip(self.classes, value, strict=True)}
        return int(value) if value.dtype.kind == "i" else None if np.isnan(value) else float(value)


Scores = Mapping[str, Score]


@dataclass(frozen=True)
class Curve:
    """A line of P points of a diagram."""

    diagram: str  # its title; curves with the same one are drawn together
    name: str
    axes: tuple[str, str]
    x: np.ndarray  # (P,)
    y: np.ndarray  # (P,)


@dataclass(frozen=True)
class Outline:
    """The footprint of an object from above."""

    kind: Kind
    name: str
    corners: np.ndarray  # (4, 2) m, x ahead of the vehicle and y to its left; the first two are the front


@dataclass(frozen=True)
class WorstFrame:
    """A frame with many mistakes."""

    frame: int  # its number among the counted ones
    values: Mapping[str, float]  # column -> value; the first is the one by which frames are ranked
    outlines: Sequence[Outline] = ()


class ReplayedFrames(NamedTuple):
    """The F frames of a finished replay."""

    folder: Path  # of the replay
    tokens: Sequence[str]
    egos: np.ndarray  # (F, 2) m, position of the vehicle in the global frame
    groups: np.ndarray  # (F,) int; frames of a group have the same scene and conditions, so all or none of them count


class Recorded(NamedTuple):
    """What a metric has of the F frames of a finished replay; None for frames in which the task did not run."""

    frames: Sequence[Counts | None]  # as statistics.jsonl has them; each is read when it is asked for
    counts: Sequence[Counts | None]  # as `Metric.recorded` keeps them


class Metric(ABC, Generic[Result]):
    """Counts and scores of a task; `grid` is of the pillars, or of the results, which cover the same area."""

    truth: ClassVar[Sequence[str]] = ()  # kinds of `Frame.truth` that it counts with
    main: ClassVar[str | None] = None  # the number of `shown` for robustness
    shown: ClassVar[Sequence[str]] = ()  # of the scores those that an evaluation has of every part of its frames
    lower_is_better: ClassVar[Sequence[str]] = ()  # of the numbers of `shown`
    sized_by_items: ClassVar[bool] = False  # a scene weighs in `shown` by its items instead of its frames
    gates: ClassVar[Mapping[str, GateMetric]] = {}  # scores; names are unique among tasks
    agreements: ClassVar[Mapping[str, GateMetric]] = {}  # outputs of two replays that can be compared
    files: ClassVar[Sequence[str]] = ()  # that `measure_whole` writes

    def __init__(self, taxonomy: Taxonomy, grid: BevGrid | None = None) -> None:
        self.taxonomy, self.grid = taxonomy, grid or BevGrid()

    @abstractmethod
    def counts(self, frame: Frame, result: Result) -> dict[str, Any]:
        """What was to be found in one frame, which a corruption or fault may have changed, and what was found.

        A replay stores it of every frame: annotations are under `truth`.
        """

    def details(self, frame: Frame, result: Result) -> dict[str, Any]:
        """Counts that an evaluation adds to or uses instead of `counts`; a replay gets them from `recorded`."""
        return {}

    def outputs(self, result: Result) -> dict[str, Any]:
        """What agreements of two replays compare of a frame, as JSON."""
        return {}

    def recorded(self, frames: ReplayedFrames, counts: Iterable[Counts | None]) -> Sequence[Counts | None]:
        """The counts that `scores` needs of the F frames of a replay, in bounded memory, from statistics.jsonl.

        None where the task did not run, and for frames whose counts were added to those of an earlier one of their
        group.
        """
        return list(counts)

    @abstractmethod
    def scores(self, counts: Sequence[Counts | None], weights: Weights) -> Scores:
        """The scores of frames by their counts, as far as these allow; names are unique among tasks.

        With a weight of 0 for some frames, the scores are as if there were no such frames.
        """

    @abstractmethod
    def report(self, counts: Sequence[Counts]) -> dict[str, Any]:
        """The scores over all frames of an evaluation, as strict JSON; Unmeasured without annotations. Names are
        unique."""

    @abstractmethod
    def tables(self, scores: Mapping[str, Any]) -> list[Table]:
        """Tables of the result of `report`."""

    @staticmethod
    def class_table(
        title: str, names: Iterable[str], columns: Mapping[str, Mapping[str, float | None]], what: str = "class"
    ) -> Table:
        """A row for each name with its number in each column; in the footer those of "mean", where there are any."""
        from rich.table import Table

        table = Table(title=title, show_footer=True)
        table.add_column(what, footer="mean")
        for column, numbers in columns.items():
            table.add_column(column, format_number(numbers["mean"]) if "mean" in numbers else "", justify="right")
        for name in names:
            table.add_row(name, *(format_number(numbers[name]) for numbers in columns.values()))
        return table

    def curves(self, counts: Sequence[Counts]) -> Sequence[Curve]:
        return ()

    def find_worst(self, counts: Sequence[Counts], most: int) -> Sequence[WorstFrame]:
        """At most so many frames of an evaluation with the most mistakes, worst first."""
        return ()

    def list_usual_gates(self, counts: Sequence[Counts | None]) -> tuple[Sequence[str], Sequence[str]]:
        """In the absence of a file of gates: scores that must not fall against a baseline, and outputs that must agree
        with it."""
        return (), ()

    def agreement(self, here: Recorded, there: Recorded, weights: Weights, subject: Subject) -> tuple[float, str]:
        """Agreement of the outputs of two replays of the same frames, in [0, 1], and its description.

        The subject's metric is one of `agreements`. Unmeasured if neither replay has outputs to compare.
        """
        raise NotImplementedError

    def measure_whole(self, folder: Path, tokens: Sequence[str], source: Keyframes) -> None:
        """Measure the gates with `whole`, and write their scores to `files` in the folder of a replay with such a gate.

        Of each scene every keyframe was replayed, from the first one to the last one; the source has their annotations.
        """
        raise NotImplementedError

    def read_whole_score(self, folder: Path, name: str) -> float:
        """A score that `measure_whole` wrote; raises Unmeasured without it."""
        raise Unmeasured(self.gates[name].missing)


class RingMetric(Metric[Result]):
    """IoU of classes, from `counts` (3, classes, rings) of each frame; None for a frame without annotations."""

    @abstractmethod
    def ious(self, counts: np.ndarray) -> np.ndarray:
        """(..., classes) of counts (..., 3, classes), of which the last are of the truth; NaN: not defined."""

    @abstractmethod
    def names(self) -> Sequence[str]:
        """Of the classes."""

    def recorded(self, frames: ReplayedFrames, counts: Iterable[Counts | None]) -> list[dict[str, Any] | None]:
        """The sum of the `counts` of each group, at its first frame with the task."""
        sums = GroupSums(frames.groups)
        return [sums.add(i, None if each is None else {"counts": each["counts"]}) for i, each in enumerate(counts)]

    def scores(self, counts: Sequence[Counts | None], weights: Weights) -> dict[str, Score]:
        """`shown`: the mean over the classes that are defined, and each class."""

        def in_range(own: Counts) -> np.ndarray | None:
            return None if own["counts"] is None else own["counts"][..., rings(weights.range)].sum(axis=2)

        by_scene, (mean, by_class), names = weights.sums(counts, in_range), self.shown, self.names()
        if by_scene is None:
            undefined = np.full((len(weights.draws), len(names)), np.nan)
            return {mean: Score(mean_known(undefined)), by_class: Score(undefined, names)}
        shares, true = self.ious(weights.drawn(by_scene)), by_scene[:, 2]
        return {
            mean: Score(mean_known(shares), (), true, by_scene),
            by_class: Score(shares, names, true, by_scene),
        }

    def find_worst(self, counts: Sequence[Counts], most: int) -> list[WorstFrame]:
        found = (None if each["counts"] is None else self.ious(each["counts"].sum(axis=2)) for each in counts)
        return lowest_ious(self.shown[0], found, most)


class GroupSums:
    """Adds up the `counts` of each group of frames; groups (F,) int."""

    def __init__(self, groups: np.ndarray) -> None:
        self._groups, self._sums = groups, dict[int, dict[str, Any]]()

    def add(self, frame: int, own: dict[str, Any] | None) -> dict[str, Any] | None:
        """Add the `counts` of a frame, lists or None.

        Returns `own` for the first frame of a group, to which the counts of later ones will be added; None for those.
        """
        if own is None:
            return None
        first = self._sums.setdefault(int(self._groups[frame]), own)
        counts = None if own["counts"] is None else np.array(own["counts"])
        if first is own or first["counts"] is None:
            first["counts"] = counts
        elif counts is not None:
            first["counts"] = first["counts"] + counts
        return own if first is own else None


class CountedFrames(Generic[Result]):
    """Frames that a metric has counted one by one, to be scored together and in parts."""

    def __init__(self, metric: Metric[Result]) -> None:
        self.metric, self.counts, self.scenes = metric, list[dict[str, Any]](), list[str]()

    def add(self, frame: Frame, result: Result) -> None:
        self.counts.append({**self.metric.counts(frame, result), **self.metric.details(frame, result)})
        self.scenes.append(frame.scene)

    def __len__(self) -> int:
        return len(self.counts)

    def report(self) -> dict[str, Any]:
        return self.metric.report(self.counts)

    def part(self, frames: np.ndarray, range: Range = None) -> dict[str, Any]:
        """The `Metric.shown` of some frames, (F,) bool, or of a range, as if there were no others.

        Its numbers, None without annotations, are those that tables show; integers are amounts, not scores.
        """
        return {name: score.first() for name, score in self.shown(Weights.of(frames, None, range)).items()}

    def shown(self, weights: Weights) -> Scores:
        scores = self.metric.scores(self.counts, weights)
        return {name: scores[name] for name in self.metric.shown}


def leave_one_out(count: int) -> np.ndarray:
    """Draws (N + 1, N) of N scenes: each once, then all but one of them in turn."""
    return np.vstack([np.ones((1, count)), 1 - np.eye(count)])


def rings(range: Range) -> slice:
    """The rings in a range (m, multiples of RING)."""
    return slice(None) if range is None else slice(int(range[0] // RING), int(range[1] // RING))


def mean_shares(there: np.ndarray) -> np.ndarray:
    """(S,) share of each scene in the items (S, C), averaged over the classes that occur."""
    present = there[:, there.any(axis=0)]
    return np.asarray((present / present.sum(axis=0)).sum(axis=1) / max(1, present.shape[1]))


def mean_known(values: np.ndarray) -> np.ndarray:
    """(...) means of (..., N) over the numbers that are not NaN; NaN without any."""
    known = ~np.isnan(values)
    sums = np.where(known, values, 0.0).sum(axis=-1)
    return np.asarray(np.divide(sums, known.sum(axis=-1), out=np.full_like(sums, np.nan), where=known.any(axis=-1)))


def lowest_ious(name: str, ious: Iterable[np.ndarray | None], most: int) -> list[WorstFrame]:
    """The frames with the lowest mean IoU over the classes that occur.

    Args:
        name: of the mean.
        ious: (classes,) of each frame, NaN for classes that do not occur; None without annotations.
    """
    means = np.array([np.nan if each is None or np.isnan(each).all() else np.nanmean(each) for each in ious])
    return [
        WorstFrame(int(i), {name: float(means[i])}) for i in np.argsort(means, kind="stable")[:most] if means[i] >= 0
    ]
