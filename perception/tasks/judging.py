"""The interface by which a task judges a finished replay: scores, and agreement with another replay. numpy only."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, TypeVar

import numpy as np

from perception.tasks.rings import rings
from perception.taxonomy import Taxonomy

if TYPE_CHECKING:
    from perception.datasets.keyframes import Keyframes

Range = tuple[float, float] | None  # m from the vehicle: from, to; None: all


class Unmeasured(Exception):
    """The reason why there is no measurement, such as frames without annotations."""


class Subject(NamedTuple):
    """A metric, and the frames that it is measured on."""

    metric: str
    class_: str | None = None  # None: over all classes
    condition: str | None = None  # such as rain or rain+night; None: all frames
    range: Range = None

    @property
    def where(self) -> str:
        """Description of the frames, such as ' in rain within 0 to 30 m'; '' for all."""
        bounds = " within {:g} to {:g} m".format(*self.range) if self.range else ""
        return (f" in {self.condition}" if self.condition else "") + bounds


@dataclass(frozen=True)
class GateMetric:
    """A metric that gates can name.

    Attributes:
        classes: the names in the taxonomy that it can be measured for; None: only for all together.
        each: a gate without a class applies to each annotated class.
        ranged: it can be measured for a range.
        step: m, of which the bounds of ranges are multiples.
        whole: it is measured once for all classes and frames of a replay (`Judge.measure_whole`).
    """

    classes: Literal["class_names", "map_names", "point_names", "voxel_names"] | None = None
    each: bool = False
    ranged: bool = True
    step: float | None = None
    whole: bool = False

    def names(self, taxonomy: Taxonomy) -> tuple[str, ...]:
        """The classes that it can be measured for."""
        return () if self.classes is None else getattr(taxonomy, self.classes)


@dataclass(frozen=True)
class ReplayedFrames:
    """F frames of a finished replay."""

    folder: Path  # of the replay
    taxonomy: Taxonomy  # of the network
    tokens: Sequence[str]
    scenes: np.ndarray  # (F,) int, the scene of each, from 0 on
    egos: np.ndarray  # (F, 2) m, position of the vehicle in the global frame
    conditions: Sequence[frozenset[str]]  # known conditions of each frame
    statistics: Sequence[Mapping[str, Any] | None]  # from `Task.statistics`; None: the task did not run

    def __len__(self) -> int:
        return len(self.tokens)

    def known(self, condition: str | None) -> np.ndarray:
        """(F,) bool: frames that are known to have all conditions of a text such as rain+night.

        Raises:
            Unmeasured: there is no such frame.
        """
        wanted = frozenset(condition.split("+")) if condition else frozenset()
        frames = np.array([wanted <= each for each in self.conditions], bool)
        if not frames.any():
            raise Unmeasured(f"no frame is known to be in {condition}")
        return frames


OwnJudge = TypeVar("OwnJudge", bound="Judge")


class Judge(ABC):
    """Measures the results of a task in a replay."""

    metrics: ClassVar[Mapping[str, GateMetric]] = {}  # scores, higher is better; names are unique among tasks
    agreements: ClassVar[Mapping[str, GateMetric]] = {}  # outputs of two replays that can be compared
    files: ClassVar[Sequence[str]] = ()  # that `measure_whole` writes

    def __init__(self, frames: ReplayedFrames) -> None:
        self.frames = frames

    @abstractmethod
    def score(self, subject: Subject, draws: np.ndarray | None = None) -> np.ndarray:
        """(R,) score of each draw.

        Args:
            draws: (R, S) multiplicity of each scene; None: each once, R = 1.

        Raises:
            Unmeasured: the frames have nothing to measure.
        """

    @abstractmethod
    def sizes(self, subject: Subject) -> np.ndarray:
        """(S,) share of each scene in the scored items."""

    @abstractmethod
    def same_results(self: OwnJudge, other: OwnJudge, subject: Subject) -> bool:
        """Whether another replay of the same frames has identical scored results."""

    def measure_whole(self, source: Keyframes) -> None:
        """Measure the metrics with `whole`, and keep their scores in `files` in the folder of the replay.

        It is called at the end of a replay with a gate for one of them, because it may take longer than the replay.

        Args:
            source: with the annotations. Of each scene every keyframe was replayed, from the first one to the last one.
        """
        raise NotImplementedError

    def annotated_classes(self, subject: Subject) -> Sequence[str]:
        """Classes for which a metric with `each` can be measured; raises Unmeasured without annotations."""
        return ()

    def agreement(self: OwnJudge, other: OwnJudge, subject: Subject, score: float, metres: float) -> tuple[float, str]:
        """Agreement of the outputs with those of another replay of the same frames, in [0, 1], and its description.

        Args:
            subject: its metric is one of `agreements`.
            score: minimum score of detections.
            metres: maximum distance between two matching detections.

        Raises:
            Unmeasured: neither replay has outputs to compare.
        """
        raise NotImplementedError

    def usual_differences(self) -> Sequence[str]:
        """Metrics that must not fall against a baseline, in the absence of a file of gates."""
        return ()

    def usual_agreements(self) -> Sequence[str]:
        """Outputs that must agree with a baseline, in the absence of a file of gates."""
        return ()


class RingJudge(Judge):
    """Judges counts (3, classes, rings) that the frames' statistics have as `counts`: of intersection, of union or
    prediction, and of truth."""

    without: ClassVar[str]  # message if no frame has counts

    @cached_property
    def counts(self) -> np.ndarray | None:
        """(F, 3, classes, rings), zero for frames without counts; None if no frame has them."""
        counts = [(i, each["counts"]) for i, each in enumerate(self.frames.statistics) if each and each["counts"]]
        if not counts:
            return None
        every = np.zeros((len(self.frames), *np.shape(counts[0][1])), np.int64)
        for i, each in counts:
            every[i] = each
        return every

    def by_scene(self, subject: Subject) -> np.ndarray:
        """(S, 3, classes) counts of each scene in the subject's condition and range.

        Raises:
            Unmeasured: no frame has counts.
        """
        if self.counts is None:
            raise Unmeasured(self.without)
        frames, scenes = self.frames.known(subject.condition), self.frames.scenes
        per_scene = np.zeros((scenes.max() + 1, *self.counts.shape[1:3]))
        np.add.at(per_scene, scenes[frames], self.counts[frames][..., rings(subject.range)].sum(axis=-1))
        return per_scene


def mean_shares(there: np.ndarray) -> np.ndarray:
    """(S,) share of each scene in the items (S, C), averaged over the classes that occur."""
    present = there[:, there.any(axis=0)]
    return np.asarray((present / present.sum(axis=0)).sum(axis=1) / max(1, present.shape[1]))
