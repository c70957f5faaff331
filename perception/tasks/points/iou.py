"""Intersection over union of the classes of points, as nuScenes' devkit scores lidarseg. numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from perception.tasks.metric import RING

NONE = 255  # instead of a class: no point, or one that the network did not take
RINGS = 20  # of counts; the last has all points that are further away


def count_rings(predicted: np.ndarray, truth: np.ndarray, points: np.ndarray, classes: int) -> np.ndarray:
    """(3, classes, RINGS) points of intersection, prediction and truth, in rings of RING around the vehicle.

    Points without an annotated class are left out, as class 0 in the devkit.

    Args:
        predicted: (M,) class of each point, NONE without one.
        truth: (M,) annotated class; -1 without one.
        points: (M, >=2) x y (m).
    """
    distance = np.hypot(points[:, 0], points[:, 1])
    ring = np.minimum(distance // RING, RINGS - 1).astype(np.int64)
    known = truth >= 0

    def count(labels: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        index = labels[chosen].astype(np.int64) * RINGS + ring[chosen]
        return np.bincount(index, minlength=classes * RINGS).reshape(classes, RINGS)

    return np.stack(
        [count(truth, known & (predicted == truth)), count(predicted, known & (predicted != NONE)), count(truth, known)]
    )


def ious(counts: np.ndarray) -> np.ndarray:
    """(..., classes) IoU of counts (..., 3, classes) of intersection, prediction and truth.

    NaN for a class that is neither annotated nor predicted. The union is rounded to float32 as in the devkit's
    `ConfusionMatrix.get_per_class_iou`, to be equal to it for more than 2^24 points.
    """
    intersection, predicted, true = np.moveaxis(counts, -2, 0)
    union = (predicted + true - intersection).astype(np.float32).astype(np.float64)
    return np.divide(intersection, union, out=np.full(union.shape, np.nan), where=union > 0)


def summary(counts: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Scores of counts (3, classes): `mean` over the classes with an IoU, `frequency_weighted`, and `classes`.

    Those of the devkit's `LidarSegEval`: `miou`, `freq_weighted_iou` and `iou_per_class`. None where undefined.
    """
    each, true = ious(counts), counts[2]
    present = ~np.isnan(each)
    return {
        "mean": float(each[present].mean()) if present.any() else None,
        "frequency_weighted": float(np.nansum(true * each) / true.sum()) if true.any() else None,
        "classes": {
            name: float(value) if known else None for name, value, known in zip(names, each, present, strict=True)
        },
    }
