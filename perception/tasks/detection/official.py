"""Compares the scores of an evaluation with those of the official nuScenes devkit."""

from __future__ import annotations

import json
import math
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from perception.atomic import write_atomically
from perception.datasets.keyframes import Keyframes
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.errors import InputError
from perception.strict_json import strict
from perception.tasks.detection.devkit import open_devkit, require_devkit, score_submission
from perception.tasks.detection.files import SUBMISSION

SCORED = ("mAP", "NDS", "label_aps", "mean_dist_aps", "label_tp_errors", "tp_errors", "tp_scores")


def require_official(tables: Keyframes) -> None:
    """Raise InputError, before a long evaluation, unless the devkit is installed and can read these drives."""
    require_devkit()
    if not isinstance(tables, NuScenesTables):
        raise InputError(f"{tables.dataroot}: the devkit reads nuScenes tables, not infos; leave out --official")


def compare(out: Path, tables: Keyframes, metrics: dict[str, Any], console: Console) -> dict[str, Any]:
    """Score the submission in the folder `out` with the devkit as well, and add its scores to metrics.json.

    Args:
        metrics: the result of `evaluate`.

    Returns:
        `metrics` with `official`: the devkit's `version`, its scores under the same keys, and `largest_difference` to
        ours: NaN, written as None, if only one of them defines a score.
    """
    assert isinstance(tables, NuScenesTables)
    samples = tables.samples(metrics["split"], metrics["selectors"])
    with console.status("Scoring with nuscenes-devkit"):
        nusc = open_devkit(tables.dataroot, tables.version)
        scores = score_submission(out / SUBMISSION, nusc, samples)
    largest = float(np.max([_difference(*pair) for key in SCORED for pair in _pairs(metrics[key], scores[key])]))
    official = {"version": version("nuscenes-devkit"), **scores, "largest_difference": strict(largest)}
    metrics = metrics | {"official": official}
    write_atomically(out / "metrics.json", json.dumps(metrics, indent=2, allow_nan=False).encode())
    console.print(
        f"nuscenes-devkit {official['version']}: mAP {scores['mAP']:.4f}, NDS {scores['NDS']:.4f}; "
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
