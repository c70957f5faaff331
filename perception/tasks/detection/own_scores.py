"""Scores of a submission without the devkit, for drives that have no tables: the devkit's numbers, in its form."""

from __future__ import annotations

from typing import Any

import numpy as np

from perception.frame import CLASSES
from perception.tasks.detection.columns import BoxColumns
from perception.tasks.detection.devkit import strict
from perception.tasks.detection.scores import ERRORS, THRESHOLDS, DetectionScores


def score(truth: BoxColumns, detections: BoxColumns, frames: int) -> dict[str, Any]:
    """What `score_submission` gives, of boxes that count in so many frames.

    Where no attribute is known, as in infos, its error counts as 1, as with the devkit.
    """
    matched = DetectionScores(truth, detections, np.zeros(frames, np.int64))
    scores = matched.scored()
    present = matched.annotated.sum(axis=0) > 0
    aps, errors, mean_errors = scores.class_aps[0], scores.errors[0], scores.mean_errors[0]
    return strict(
        {
            "mAP": scores.mean_ap[0],
            "NDS": scores.nds[0],
            "mAP_present": aps[present].mean() if present.any() else None,
            "ground_truth": {name: int(n) for name, n in zip(CLASSES, matched.annotated.sum(axis=0), strict=True)},
            "label_aps": {
                name: dict(zip(THRESHOLDS, each, strict=True))
                for name, each in zip(CLASSES, scores.aps[0], strict=True)
            },
            "mean_dist_aps": dict(zip(CLASSES, aps, strict=True)),
            "label_tp_errors": {
                name: dict(zip(ERRORS, each, strict=True)) for name, each in zip(CLASSES, errors, strict=True)
            },
            "tp_errors": dict(zip(ERRORS, mean_errors, strict=True)),
            "tp_scores": dict(zip(ERRORS, np.maximum(0, 1 - mean_errors), strict=True)),
        }
    )
