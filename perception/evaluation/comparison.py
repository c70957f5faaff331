"""Compares two evaluations of the same keyframes, slice by slice, with intervals over scenes.

Each evaluation writes its scores without each of its scenes (`LEFT_OUT`), of which the intervals are made.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from perception.errors import InputError
from perception.evaluation.interval import LEAST_SCENES, jackknife_interval, too_few
from perception.evaluation.report import comparison_page
from perception.evaluation.slices import Evaluated, Subset, subsets
from perception.io.files import format_number, make_folder, strict, write_together
from perception.io.section import Section, parse_section
from perception.tasks.metric import CountedFrames, Weights, mean_shares

CONFIDENCE = 0.95
LEFT_OUT = "left_out.json"  # in the folder of an evaluation
WHOLE = "all"  # axis and name of the subset of all frames
_COLOURS = {"better": "green", "worse": "red", "same": "dim", "undecided": ""}


class LeftOutScore(Section):
    """A score of a subset, and the amounts that its N scenes have to score."""

    values: list[float | None]  # with all scenes, then without each in turn; only the first with few scenes
    sizes: list[float]
    lower_is_better: bool


class Slice(Section):
    samples: int
    scenes: list[str]  # N, sorted
    scores: dict[str, LeftOutScore]


class LeftOutScores(Section):
    """Content of `LEFT_OUT`."""

    keyframes: dict[str, str]  # token -> scene
    slices: dict[str, dict[str, Slice]]  # axis -> subset; WHOLE is one of them

    @staticmethod
    def load(folder: Path) -> LeftOutScores:
        """Read what `evaluate` wrote in this folder; InputError if it did not."""
        path = folder / LEFT_OUT
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise InputError(
                f"{folder}: no readable {LEFT_OUT}; give a folder that `perception evaluate` wrote"
            ) from None
        return parse_section(LeftOutScores, content, str(path))


def leave_scenes_out(evaluated: Evaluated, by: Sequence[str]) -> LeftOutScores:
    """The scores of all frames, and of their subsets (`slice_scores`) along the axes, without each scene in turn."""
    known, conditions = evaluated.known, evaluated.tables.taxonomy.conditions
    scenes = np.array([each.scene for each in known])
    slices: dict[str, dict[str, Slice]] = {}
    whole = Subset(WHOLE, WHOLE, np.ones(len(known), bool))
    for subset in chain([whole], subsets(known, by, conditions)):
        own, count = np.unique(scenes[subset.frames]).tolist(), int(subset.frames.sum())
        scores: dict[str, LeftOutScore] = {}
        for counted in evaluated.counted.values():
            scores |= _leave_out(counted, subset, scenes if len(own) >= LEAST_SCENES else None)
        slices.setdefault(subset.axis, {})[subset.name] = Slice(samples=count, scenes=own, scores=scores)
    keyframes = dict(zip(evaluated.tokens, (each.scene for each in known), strict=True))
    return LeftOutScores(keyframes=keyframes, slices=slices)


def _leave_out(counted: CountedFrames[Any], subset: Subset, scenes: np.ndarray | None) -> dict[str, LeftOutScore]:
    """The scores of one task; scenes: (F,) of the frames, None: too few for an interval, so that none is left out."""
    metric, weights = counted.metric, Weights.of(subset.frames, scenes, subset.bounds)
    count = weights.draws.shape[1]
    samples = np.bincount(weights.scenes[subset.frames], minlength=count)
    if scenes is not None:
        weights = weights.leaving_out()
        if not metric.sized_by_items:
            weights = replace(weights, draws=np.vstack([weights.draws, np.eye(count)]))  # the last: each scene alone
    found = dict[str, LeftOutScore]()
    for name, score in counted.shown(weights).items():
        if score.classes or score.values.dtype.kind != "f":
            continue
        sizes = np.zeros(0)
        if scenes is not None:
            alone = score.values[count + 1 :]
            sizes = (
                mean_shares(score.sizes)
                if metric.sized_by_items and score.sizes is not None
                else samples * np.isfinite(alone)
            )
        values = [strict(value) for value in score.values[: len(sizes) + 1].tolist()]
        lower = name in metric.lower_is_better
        found[name] = LeftOutScore(values=values, sizes=sizes.tolist(), lower_is_better=lower)
    return found


def compare(before: Path, after: Path, by: Sequence[str] = ()) -> dict[str, Any]:
    """The change of each score from one evaluation to another, over all frames and in each slice.

    The comparison is paired: `perception.evaluation.interval` of the differences, for which the same scenes are left
    out of both.

    Args:
        before, after: folders that `evaluate` wrote.
        by: axes of slices; empty for those that both evaluations have.

    Returns:
        Strict JSON: `before`, `after`, `keyframes`, `scenes`, `confidence`, and `slices`, axis -> subset -> score ->
        `before`, `after`, `difference`, `interval` (None if there is none, then `why`) and `outcome`: better or worse
        if the interval excludes 0, same if leaving out any scene changes neither, else undecided.
    """
    folders = before, after
    first, second = map(LeftOutScores.load, folders)
    _require_same_keyframes(folders, first, second)
    for folder, each in zip(folders, (first, second), strict=True):
        for axis in by:
            if axis not in each.slices:
                raise InputError(f"{folder}: was evaluated without --by {axis}; evaluate it again with it")
    axes = [axis for axis in first.slices if axis == WHOLE or (axis in (by or second.slices))]
    return {
        "before": str(before),
        "after": str(after),
        "keyframes": len(first.keyframes),
        "scenes": len(set(first.keyframes.values())),
        "confidence": CONFIDENCE,
        "slices": {
            axis: {
                name: _changes(own, second.slices[axis].get(name), f"{after}: {name}")
                for name, own in first.slices[axis].items()
            }
            for axis in axes
        },
    }


def _require_same_keyframes(folders: tuple[Path, Path], first: LeftOutScores, second: LeftOutScores) -> None:
    if first.keyframes != second.keyframes:
        common = len(first.keyframes.items() & second.keyframes.items())
        raise InputError(
            f"{folders[1]}: has {len(second.keyframes)} keyframes and {folders[0]} has {len(first.keyframes)}, "
            f"{common} of them the same; evaluate both with the same --data, --split and --scenes"
        )


def _changes(first: Slice, second: Slice | None, where: str) -> dict[str, dict[str, Any]]:
    if second is None or (first.samples, first.scenes) != (second.samples, second.scenes):
        raise InputError(f"{where} has other frames; evaluate both with the same tags")
    return {
        name: _change(own, second.scores[name], where) for name, own in first.scores.items() if name in second.scores
    }


def _change(first: LeftOutScore, second: LeftOutScore, where: str) -> dict[str, Any]:
    sizes = np.array(first.sizes)
    if not np.allclose(sizes, second.sizes):
        raise InputError(f"{where} has other annotations; evaluate both on the same data set")
    before, after = (np.array([math.nan if each is None else each for each in s.values]) for s in (first, second))
    differences = after - before
    why, interval = too_few(sizes), None
    if not why and not np.isfinite(differences).all():
        why = "it is not defined without one of the scenes"
    if not why:
        interval = jackknife_interval(differences, sizes, CONFIDENCE).tolist()
    return {
        "before": strict(before[0]),
        "after": strict(after[0]),
        "difference": strict(differences[0]),
        "interval": interval,
        "why": why,
        "outcome": _outcome(differences, interval, first.lower_is_better),
    }


def _outcome(differences: np.ndarray, interval: list[float] | None, lower_is_better: bool) -> str:
    if interval is None:
        return "undecided"
    if not differences.any():
        return "same"
    low, high = interval
    if low <= 0 <= high:
        return "undecided"
    return "better" if (low > 0) != lower_is_better else "worse"


def comparison_table(found: dict[str, Any]) -> Table:
    """A table with a row for each slice."""
    slices = found["slices"]
    title = escape(
        f"{found['after']} against {found['before']}: difference, {found['confidence']:.0%} interval over scenes"
    )
    table = Table(title=title, caption="without an interval: too few scenes, or one that outweighs the others")
    table.add_column("slice")
    names = [*slices[WHOLE][WHOLE]]
    for name in names:
        table.add_column(name, justify="right")
    for parts in slices.values():
        for part, changes in parts.items():
            table.add_row(escape(part), *(_cell(changes[name]) for name in names))
        table.add_section()
    return table


def _cell(change: dict[str, Any]) -> str:
    if change["difference"] is None:
        return format_number(None)
    interval = " [{:+.3f}, {:+.3f}]".format(*change["interval"]) if change["interval"] else ""
    text = escape(f"{change['difference']:+.3f}{interval}")
    colour = _COLOURS[change["outcome"]]
    return f"[{colour}]{text}[/]" if colour else text


def write_comparison(out: Path, found: dict[str, Any]) -> None:
    make_folder(out)
    content = json.dumps(found, indent=2, allow_nan=False).encode()
    write_together({out / "comparison.json": content, out / "comparison.html": comparison_page(found).encode()})
