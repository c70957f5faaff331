"""Random boxes."""

from collections.abc import Sequence

import numpy as np

from perception.tasks.detection.columns import BoxColumns


def random_boxes(
    rng: np.random.Generator, frames: int, ties: bool = False, classes: Sequence[int] = (0, 5, 8, 9), boxes: int = 60
) -> tuple[BoxColumns, BoxColumns]:
    """Annotations, and detections of most of them among false ones; some velocities and attributes are unknown."""
    labels = rng.choice(classes, boxes)
    rows = np.column_stack(
        [
            rng.integers(0, frames, boxes), labels, rng.uniform(-8, 8, (boxes, 3)), rng.uniform(0.5, 4, (boxes, 3)),
            rng.uniform(-7, 7, boxes), rng.normal(0, 3, (boxes, 2)), rng.integers(-1, 8, boxes),
            np.ones(boxes), rng.integers(1, 5, boxes),
        ]
    )  # fmt: skip
    rows[rng.random(boxes) < 0.1, 9:11] = np.nan
    found = rows[rng.integers(0, boxes, 3 * boxes)]
    found[:, 2:5] += rng.normal(0, 1.2, (len(found), 3))
    found[:, 5:8] *= rng.uniform(0.8, 1.2, (len(found), 3))
    found[:, 8] += rng.normal(0, 1, len(found))
    found[:, 9:11] = rng.normal(0, 3, (len(found), 2))
    found[:, 12] = rng.integers(1, 6, len(found)) / 5 if ties else rng.uniform(0.01, 1, len(found))
    return BoxColumns.of(rows), BoxColumns.of(found)
