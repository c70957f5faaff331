"""Formats scores for strict JSON and for tables."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def strict(value: Any) -> Any:
    """The value for strict JSON: string keys, None for NaN, Python numbers."""
    if isinstance(value, dict):
        return {str(key): strict(entry) for key, entry in value.items()}
    if value is None or isinstance(value, int):
        return value
    return None if math.isnan(value) else float(value)


def jsonable(value: Any) -> Any:
    """The value with lists in place of arrays, in which None stands for NaN."""
    if isinstance(value, dict):
        return {key: jsonable(entry) for key, entry in value.items()}
    if not isinstance(value, np.ndarray):
        return value
    unknown = np.isnan(value) if value.dtype.kind == "f" else np.zeros(0, bool)
    if unknown.any():
        value = value.astype(object)
        value[unknown] = None
    return value.tolist()


def shown(value: float | None) -> str:
    """The number with three digits; - for None; integers unchanged."""
    return "-" if value is None else str(value) if isinstance(value, int) else f"{value:.3f}"
