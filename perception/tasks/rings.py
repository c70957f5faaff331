"""Rings around the vehicle, in which tasks count what they score, so that scores of ranges need no second count."""

from __future__ import annotations

RING = 10.0  # m, width of a ring


def rings(bounds: tuple[float, float] | None) -> slice:
    """The rings in a range (m, multiples of RING); None: all."""
    return slice(None) if bounds is None else slice(int(bounds[0] // RING), int(bounds[1] // RING))
