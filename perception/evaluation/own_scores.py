"""Scores of a submission without the devkit, for drives that have no tables: the devkit's numbers, in its form."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from perception.data.keyframes import Keyframes
from perception.errors import InputError
from perception.evaluation.columns import BoxColumns, read_submission
from perception.evaluation.detection import strict
from perception.evaluation.detection_scores import ERRORS, THRESHOLDS, DetectionScores
from perception.frame import CLASSES


def score(submission: Path, source: Keyframes, samples: Sequence[str]) -> dict[str, Any]:
    """What `score_submission` gives, of the annotations of any source.

    Where no attribute is known, as in infos, its error counts as 1, as with the devkit.

    Raises:
        InputError: the drives have no annotations, the file is no submission, or some samples have no entry in it.
    """
    frame_of = {token: i for i, token in enumerate(samples)}
    truth, places = [], []
    for token, i in frame_of.items():
        boxes = source.boxes(token)
        if boxes is None:
            raise InputError(f"{source.dataroot}: {source.version} has no annotations to score with")
        truth.append(BoxColumns.of_frame(boxes, i))
        places.append(source.frame(token, annotations=False, lidar=False, cameras=False).global_from_ego[:2, 3])
    racks = source.racks()
    racked = np.array([[i, *rack] for token, i in frame_of.items() for rack in racks.get(token, ())]).reshape(-1, 11)
    annotated, detections = (
        boxes.counted(np.array(places).reshape(-1, 2), racked)
        for boxes in (BoxColumns.joined(truth), read_submission(submission, frame_of))
    )
    matched = DetectionScores(annotated, detections, np.zeros(len(samples), np.int64))
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
