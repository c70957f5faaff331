"""Formats scores for strict JSON and for tables."""

from __future__ import annotations

import math
from typing import Any


def strict(value: Any) -> Any:
    """The value for strict JSON: string keys, None for NaN, Python numbers."""
    if isinstance(value, dict):
        return {str(key): strict(entry) for key, entry in value.items()}
    if value is None or isinstance(value, int):
        return value
    return None if math.isnan(value) else float(value)


def shown(value: float | None) -> str:
    """The number with three digits; - for None; integers unchanged."""
    return "-" if value is None else str(value) if isinstance(value, int) else f"{value:.3f}"
