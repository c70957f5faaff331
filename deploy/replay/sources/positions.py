"""The vehicle's position on earth at the time of a frame of a recording."""

from __future__ import annotations

from collections import deque

import numpy as np

from deploy.replay.sources.messages import Fix
from perception.datasets.nuscenes.georeference import position_on_map

_MOST = 256  # fixes
_LONGEST_HOLD = 2_000_000  # us for which a fix is used


class Positions:
    """The latest fixes by satellite, in order of arrival."""

    def __init__(self) -> None:
        self._fixes: deque[Fix] = deque(maxlen=_MOST)

    def add(self, fix: Fix) -> None:
        self._fixes.append(fix)

    def at(self, stamp: int, location: str, global_from_ego: np.ndarray) -> tuple[float, float] | None:
        """Latitude and longitude (degrees, WGS 84): of the fix that is closest in time or, without one within 2 s, by
        the vehicle's pose on a map whose origin is known.

        Args:
            stamp: us.
            location: name of the map.
            global_from_ego: (4, 4) pose at that time.
        """
        fix = min(self._fixes, key=lambda each: abs(each.stamp - stamp), default=None)
        if fix is not None and abs(fix.stamp - stamp) <= _LONGEST_HOLD:
            return fix.latitude, fix.longitude
        return position_on_map(location, global_from_ego)
