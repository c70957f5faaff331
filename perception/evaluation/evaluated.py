"""The frames of an evaluation and the metrics that were made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from perception.datasets.keyframes import Keyframes
from perception.evaluation.slices import Known
from perception.tasks.metric import Metric


@dataclass(frozen=True)
class Evaluated:
    """F evaluated frames, in the order in which they were added to the metrics."""

    tables: Keyframes
    tokens: Sequence[str]  # (F,)
    known: Sequence[Known]  # (F,)
    metrics: Mapping[str, Metric[Any]]  # by task
