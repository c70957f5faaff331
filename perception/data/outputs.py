"""The network's outputs made into a prediction. numpy only."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from perception.frame import CONDITIONS, Boxes, Prediction


def to_prediction(outputs: Mapping[str, np.ndarray], index: int = 0, score_threshold: float = 0.0) -> Prediction:
    """Prediction of one frame of the batch.

    Args:
        outputs: boxes (B, K, 10) of x y z, w l h (m), sin and cos of the yaw times any factor, vx vy (m/s);
            scores (B, K), descending; labels and attributes (B, K); and map (B, 6, rows, columns) if the model has a
            map head; recognised (B, 7), probabilities in the order of CONDITION_VALUES, if it recognises conditions.
        index: which frame of the batch.
        score_threshold: boxes below it are left out.
    """
    scores = outputs["scores"][index]
    kept = scores >= score_threshold
    boxes = outputs["boxes"][index][kept].astype(np.float64)
    return Prediction(
        boxes=Boxes.from_headings(
            centers=boxes[:, 0:3],
            sizes=boxes[:, 3:6],
            headings=boxes[:, 6:8],
            velocities=boxes[:, 8:10],
            labels=outputs["labels"][index][kept],
            attributes=outputs["attributes"][index][kept],
            scores=scores[kept],
        ),
        map_probabilities=outputs["map"][index] if "map" in outputs else None,
        recognised=_by_kind(outputs["recognised"][index]) if "recognised" in outputs else {},
    )


def _by_kind(probabilities: np.ndarray) -> dict[str, list[float]]:
    left = iter(probabilities.tolist())
    return {kind: [next(left) for _ in values] for kind, values in CONDITIONS.items()}
