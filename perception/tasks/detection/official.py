"""Compares the scores of an evaluation with those of the official devkit."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from perception.datasets.keyframes import Keyframes
from perception.errors import InputError
from perception.io.files import strict, write_atomically
from perception.tasks.detection.devkit import DEVKITS, Devkit, open_devkit, score_submission
from perception.tasks.detection.files import SUBMISSION

SCORED = ("mAP", "NDS", "label_aps", "mean_dist_aps", "label_tp_errors", "tp_errors", "tp_scores")


def require_official(tables: Keyframes) -> None:
    """Raise InputError, before a long evaluation, unless the devkit is installed and can read these drives."""
    _devkit_of(tables).require()
    if not (tables.dataroot / tables.version).is_dir():
        raise InputError(f"{tables.dataroot}: the devkit reads the tables of one dataroot; leave out --official")


def _devkit_of(tables: Keyframes) -> Devkit:
    if tables.taxonomy.devkit is None:
        raise InputError(f"the taxonomy {tables.taxonomy.name} names no `devkit` that scores it; leave out --official")
    return DEVKITS[tables.taxonomy.devkit]


def compare(out: Path, tables: Keyframes, metrics: dict[str, Any], console: Console) -> dict[str, Any]:
    """Score the submission in the folder `out` with the devkit as well, and add its scores to metrics.json.

    Args:
        metrics: the result of `evaluate`.

    Returns:
        `metrics` with `official`: the devkit's `version`, its scores under the same keys, and `largest_difference` to
        ours: NaN, written as None, if only one of them defines a score.
    """
    devkit, samples = _devkit_of(tables), tables.samples(metrics["split"], metrics["selectors"])
    with console.status(f"Scoring with {devkit.distribution}"):
        official_tables = open_devkit(tables.dataroot, tables.version, devkit)
        scores = score_submission(out / SUBMISSION, official_tables, samples, devkit)
    largest = float(np.max([_difference(*pair) for key in SCORED for pair in _pairs(metrics[key], scores[key])]))
    official = {"version": devkit.version, **scores, "largest_difference": strict(largest)}
    metrics = metrics | {"official": official}
    write_atomically(out / "metrics.json", json.dumps(metrics, indent=2, allow_nan=False).encode())
    console.print(
        f"{devkit.distribution} {devkit.version}: mAP {scores['mAP']:.4f}, NDS {scores['NDS']:.4f}; "
        f"our scores differ from it by at most {largest:.1e}"
    )
    return metrics


def _pairs(ours: Any, theirs: Any) -> list[tuple[float | None, float | None]]:
    """Each number of a nested dict of scores with its counterpart in another one with the same keys."""
    if isinstance(theirs, dict):
        return [pair for key in theirs for pair in _pairs(ours[key], theirs[key])]
    return [(ours, theirs)]


def _difference(ours: float | None, theirs: float | None) -> float:
    if ours is None or theirs is None:
        return 0.0 if ours is theirs else math.nan
    return abs(ours - theirs)
