"""Converts the outputs of a network to a prediction. numpy only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from perception.frame import Prediction
from perception.tasks.task import Task, part_of


def to_prediction(tasks: Mapping[str, Task[Any]], outputs: Mapping[str, np.ndarray]) -> Prediction:
    """Prediction of the first frame of a batch, from its finite outputs; `not_finite` counts the others.

    A NaN would never leave a tracker or a belief again.

    Args:
        tasks: of the network.
        outputs: TASK/NAME -> (B, ...).
    """
    results, not_finite = {}, {}
    for name, task in tasks.items():
        own = {key: values[0] for key, values in part_of(name, outputs).items()}
        finite, counts = task.finite(own)
        results[name] = task.result(finite)
        not_finite.update({f"{name}/{key}": count for key, count in counts.items()})
    return Prediction(results, not_finite)
