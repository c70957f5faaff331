"""The network's outputs made into a prediction. numpy only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from perception.config import Suppression
from perception.frame import CONDITIONS, Boxes, Prediction
from perception.tasks.detection.nms import survivors


def to_prediction(
    outputs: Mapping[str, np.ndarray],
    index: int = 0,
    score_threshold: float = 0.0,
    suppression: Suppression | None = None,
) -> Prediction:
    """Prediction of one frame of the batch.

    Args:
        outputs: boxes (B, K, 10) of x y z, w l h (m), sin and cos of the yaw times any factor, vx vy (m/s);
            scores (B, K), descending; labels and attributes (B, K); with groups (B, groups, K, 10) and (B, groups, K);
            map (B, 6, rows, columns) if the model has a map head; recognised (B, 7), probabilities in the order of
            CONDITION_VALUES, if it recognises conditions.
        index: which frame of the batch.
        score_threshold: boxes below it are left out.
        suppression: of boxes near better ones; None: they all stay.
    """
    scores, boxes = outputs["scores"][index], outputs["boxes"][index]
    kept = np.arange(scores.size)
    if suppression is not None:
        groups = zip(boxes, scores, strict=True) if scores.ndim == 2 else [(boxes, scores)]
        stay = [survivors(*group, suppression, i) + i * scores.shape[-1] for i, group in enumerate(groups)]
        kept = np.concatenate(stay)
    kept = kept[np.argsort(-scores.flat[kept], kind="stable")][: suppression and suppression.total]
    kept = kept[scores.flat[kept] >= score_threshold]
    boxes = boxes.reshape(-1, boxes.shape[-1])[kept].astype(np.float64)
    return Prediction(
        boxes=Boxes.from_headings(
            centers=boxes[:, 0:3],
            sizes=boxes[:, 3:6],
            headings=boxes[:, 6:8],
            velocities=boxes[:, 8:10],
            labels=outputs["labels"][index].flat[kept],
            attributes=outputs["attributes"][index].flat[kept],
            scores=scores.flat[kept],
        ),
        map_probabilities=outputs["map"][index] if "map" in outputs else None,
        recognised=_by_kind(outputs["recognised"][index]) if "recognised" in outputs else {},
    )


def finite_prediction(outputs: Mapping[str, np.ndarray], suppression: Suppression | None = None) -> Prediction:
    """Prediction of one frame, of the outputs that are finite numbers; `not_finite` counts the others.

    Left out are boxes with a NaN or infinite number or score, and what is recognised where a probability is such; cells
    of the map become NaN, which says nothing. A tracker or a belief that took in one NaN would never lose it again.

    Args:
        outputs: as `to_prediction`, of one frame.
    """
    wrong = {
        "boxes": ~(np.isfinite(outputs["boxes"]).all(axis=-1) & np.isfinite(outputs["scores"])),
        **{name: ~np.isfinite(outputs[name]) for name in ("map", "recognised") if name in outputs},
    }
    counts = {name: count for name, each in wrong.items() if (count := int(np.count_nonzero(each)))}
    if not counts:
        return to_prediction(outputs, suppression=suppression)
    kept = dict(outputs)
    if "boxes" in counts:
        kept["boxes"] = np.where(wrong["boxes"][..., None], 0, kept["boxes"])
        kept["scores"] = np.where(wrong["boxes"], -1, kept["scores"])  # below every threshold
    if "map" in counts:
        kept["map"] = np.where(wrong["map"], np.nan, kept["map"]).astype(kept["map"].dtype)
    if "recognised" in counts:
        del kept["recognised"]
    return replace(to_prediction(kept, suppression=suppression), not_finite=counts)


def _by_kind(probabilities: np.ndarray) -> dict[str, list[float]]:
    left = iter(probabilities.tolist())
    return {kind: [next(left) for _ in values] for kind, values in CONDITIONS.items()}
