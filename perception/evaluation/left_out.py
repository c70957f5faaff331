"""The scores of an evaluation without each of its scenes, by which it is compared with another one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from perception.errors import InputError
from perception.evaluation.evaluated import Evaluated
from perception.evaluation.interval import LEAST_SCENES
from perception.evaluation.slices import Subset, subsets
from perception.section import Section, parse_section
from perception.strict_json import strict
from perception.tasks.metric import LeftOut, Metric, scores_of

LEFT_OUT = "left_out.json"  # in the folder of an evaluation
WHOLE = "all"  # axis and name of the subset of all frames


class Score(Section):
    """A score of a subset, and the amounts that its N scenes have to score."""

    values: list[float | None]  # with all scenes, then without each in turn; only the first with few scenes
    sizes: list[float]
    lower_is_better: bool


class Slice(Section):
    """The scores of a subset by name."""

    samples: int
    scenes: list[str]  # N, sorted
    scores: dict[str, Score]


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


def left_out_scores(evaluated: Evaluated, by: Sequence[str]) -> LeftOutScores:
    """The scores of all frames, and of their subsets (`slice_scores`) along the axes, without each scene in turn."""
    known, conditions = evaluated.known, evaluated.tables.taxonomy.conditions
    names, scenes = np.unique([each.scene for each in known], return_inverse=True)
    slices: dict[str, dict[str, Slice]] = {}
    whole = Subset(WHOLE, WHOLE, np.ones(len(known), bool))
    for subset in chain([whole], subsets(known, by, conditions)):
        own = names[np.unique(scenes[subset.frames])].tolist()
        scores: dict[str, Score] = {}
        for metric in evaluated.metrics.values():
            scores |= _scores(metric, subset, scenes, len(own))
        made = Slice(samples=int(subset.frames.sum()), scenes=own, scores=scores)
        slices.setdefault(subset.axis, {})[subset.name] = made
    keyframes = dict(zip(evaluated.tokens, (each.scene for each in known), strict=True))
    return LeftOutScores(keyframes=keyframes, slices=slices)


def _scores(metric: Metric[Any], subset: Subset, scenes: np.ndarray, count: int) -> dict[str, Score]:
    if count < LEAST_SCENES:  # gives no interval
        part = scores_of(metric.part(subset.frames, subset.bounds))
        found = LeftOut({name: np.array([value]) for name, value in part.items()}, dict.fromkeys(part, np.zeros(0)))
    else:
        found = metric.left_out(subset.frames, scenes, subset.bounds)
    return {
        name: Score(
            values=[strict(value) for value in values.tolist()],
            sizes=found.sizes[name].tolist(),
            lower_is_better=name in metric.lower_is_better,
        )
        for name, values in found.scores.items()
    }
