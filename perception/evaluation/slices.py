"""Scores by condition, scene and range."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from perception.datasets.keyframes import Keyframes
from perception.errors import InputError
from perception.frame import Conditions
from perception.io.files import format_number
from perception.tasks.metric import CountedFrames, Metric

RANGES = ((0.0, 20.0), (20.0, 30.0), (30.0, 50.0))  # m from the vehicle
AXES = ("condition", "scene", "range")  # and every kind of condition
Scores = dict[str, Any]


class Known(NamedTuple):
    scene: str
    conditions: Conditions


class Subset(NamedTuple):
    """Some frames, or all of them within a range."""

    axis: str
    name: str
    frames: np.ndarray  # (F,) bool
    bounds: tuple[float, float] | None = None  # m from the vehicle


@dataclass(frozen=True)
class Evaluated:
    """F evaluated frames, in the order in which they were counted."""

    tables: Keyframes
    tokens: Sequence[str]  # (F,)
    known: Sequence[Known]  # (F,)
    counted: Mapping[str, CountedFrames[Any]]  # by task

    @property
    def metrics(self) -> list[Metric[Any]]:
        return [each.metric for each in self.counted.values()]

    def part(self, frames: np.ndarray | None = None, bounds: tuple[float, float] | None = None) -> Scores:
        """`samples`, and the result of `CountedFrames.part` for each task; frames: (F,) bool, by default all."""
        frames = np.ones(len(self.known), bool) if frames is None else frames
        scores: Scores = {"samples": int(frames.sum())}
        for each in self.counted.values():
            scores |= each.part(frames, bounds)
        return scores


def check_axes(by: Sequence[str], conditions: Mapping[str, Sequence[str]]) -> None:
    """Raise InputError for an unknown axis; conditions: kind -> values."""
    for axis in by:
        if axis not in (*AXES, *conditions):
            raise InputError(f"--by {axis}: cannot slice by it; one or more of {','.join((*AXES, *conditions))}")


def slice_scores(evaluated: Evaluated, by: Sequence[str]) -> dict[str, dict[str, Scores]]:
    """Scores of each subset of the frames along the axes, or of all frames within a range, as if there were no others.

    Args:
        by: some of AXES and of the kinds of conditions. `condition` is all kinds; frames where a kind is unknown are
            in none of its subsets.

    Returns:
        Axis -> subset -> `samples`, and the result of `CountedFrames.part` for each task.
    """
    slices: dict[str, dict[str, Scores]] = {axis: {} for axis in by}
    for each in subsets(evaluated.known, by, evaluated.tables.taxonomy.conditions):
        slices[each.axis][each.name] = evaluated.part(each.frames, each.bounds)
    return slices


def subsets(frames: Sequence[Known], by: Sequence[str], conditions: Mapping[str, Sequence[str]]) -> Iterator[Subset]:
    """The subsets of `slice_scores`."""
    for axis in by:
        if axis == "range":
            every = np.ones(len(frames), bool)
            yield from (Subset(axis, "{:g}-{:g} m".format(*bounds), every, bounds) for bounds in RANGES)
        else:
            yield from (Subset(axis, name, part) for name, part in _parts(frames, axis, conditions))


def _parts(
    frames: Sequence[Known], axis: str, conditions: Mapping[str, Sequence[str]]
) -> Iterator[tuple[str, np.ndarray]]:
    if axis == "scene":
        scenes = np.array([frame.scene for frame in frames])
        yield from ((str(name), scenes == name) for name in np.unique(scenes))
        return
    for kind in conditions if axis == "condition" else (axis,):
        known = np.array([frame.conditions.get(kind) for frame in frames])
        yield from ((value, known == value) for value in conditions[kind] if (known == value).any())


def numbers(scores: Scores) -> dict[str, float | None]:
    """The scores that tables show."""
    return {name: value for name, value in scores.items() if not isinstance(value, dict | str)}


def slice_table(slices: dict[str, dict[str, Scores]]) -> Table:
    """A table with a row for each subset."""
    table = Table(title="by " + ", ".join(slices))
    table.add_column("part")
    parts = [part for each in slices.values() for part in each.values()]
    for column in numbers(parts[0]) if parts else ():
        table.add_column(column, justify="right")
    for each in slices.values():
        for name, part in each.items():
            table.add_row(name, *map(format_number, numbers(part).values()))
        table.add_section()
    return table
