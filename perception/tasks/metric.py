"""The interface by which a task scores an evaluation, and what its metric adds to the report. numpy only."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

import numpy as np

from perception.frame import Frame
from perception.grid import BevGrid

if TYPE_CHECKING:
    from rich.table import Table

    from perception.datasets.keyframes import Keyframes

Result = TypeVar("Result")
Kind = Literal["found", "missed", "right", "extra"]  # annotated and found or not, detected rightly or not


@dataclass(frozen=True)
class LeftOut:
    """Scores of some frames, and of the same frames without each of their N scenes: what an interval is made of."""

    scores: Mapping[str, np.ndarray]  # (N + 1,) with all scenes, then without each of them in turn; NaN: undefined
    sizes: Mapping[str, np.ndarray]  # (N,) amount that each scene has to score, in any unit


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
class Sample:
    """A frame with many mistakes."""

    frame: int  # its number among the added ones
    values: Mapping[str, float]  # column -> value; the first is the one by which frames are ranked
    outlines: Sequence[Outline] = ()


class Metric(ABC, Generic[Result]):
    """Scores of a task over frames that are added one by one.

    Args:
        source: of the frames and their annotations.
        grid: of the pillars; results on another grid cover the same area.
    """

    main: ClassVar[str | None] = None  # the number of `part` for robustness
    lower_is_better: ClassVar[Sequence[str]] = ()  # of the numbers of `part`

    def __init__(self, source: Keyframes, grid: BevGrid) -> None:
        self.source, self.grid = source, grid

    @abstractmethod
    def add(self, frame: Frame, result: Result) -> None:
        """Add one frame as the network saw it, perhaps corrupted; its annotations are taken from the source."""

    @abstractmethod
    def scores(self) -> dict[str, Any]:
        """Scores over all frames, as strict JSON. Their names are unique among tasks.

        Raises:
            InputError: the frames have no annotations.
        """

    @abstractmethod
    def part(self, frames: np.ndarray, bounds: tuple[float, float] | None = None) -> dict[str, Any]:
        """Scores of some frames, (F,) bool, or of a range (m from the vehicle), as if there were no others.

        Its numbers, None without annotations, are those that tables show; integers are amounts, not scores.
        """

    @abstractmethod
    def tables(self, scores: Mapping[str, Any]) -> list[Table]:
        """Tables of the result of `scores`."""

    def left_out(self, frames: np.ndarray, scenes: np.ndarray, bounds: tuple[float, float] | None = None) -> LeftOut:
        """The scores of `part`, with all scenes of the frames (F,) bool and without each of them.

        Args:
            scenes: (F,) int, the scene of each frame.
            bounds: as in `part`.
        """
        own = np.unique(scenes[frames])
        every = [scores_of(self.part(frames & (scenes != each), bounds)) for each in (-1, *own)]
        alone = [scores_of(self.part(frames & (scenes == each), bounds)) for each in own]
        samples = np.array([np.count_nonzero(frames & (scenes == each)) for each in own])
        return LeftOut(
            {name: np.array([each[name] for each in every]) for name in every[0]},
            {name: samples * np.isfinite([each[name] for each in alone]) for name in every[0]},
        )

    def curves(self) -> Sequence[Curve]:
        """Curves over all frames for the report."""
        return ()

    def worst(self, count: int) -> Sequence[Sample]:
        """At most so many frames with the most mistakes, worst first, for the report."""
        return ()


def scores_of(part: Mapping[str, Any]) -> dict[str, float]:
    """The scores among the numbers of `Metric.part`; NaN for None."""
    scores = {name: value for name, value in part.items() if value is None or isinstance(value, float)}
    return {name: np.nan if value is None else value for name, value in scores.items()}


def lowest_ious(name: str, ious: Iterable[np.ndarray | None], count: int) -> list[Sample]:
    """The frames with the lowest mean IoU over the classes that occur.

    Args:
        name: of the mean.
        ious: (classes,) of each frame, NaN for classes that do not occur; None: the frame is not annotated.
    """
    means = np.array([np.nan if each is None or np.isnan(each).all() else np.nanmean(each) for each in ious])
    return [Sample(int(i), {name: float(means[i])}) for i in np.argsort(means, kind="stable")[:count] if means[i] >= 0]
