"""Where followed objects were in the last seconds."""

from __future__ import annotations

from collections import deque

import numpy as np

from perception.tasks.detection.tracker import Tracks

LENGTH = 4.0  # s
STEP = 0.4  # s between the places of a trail at least


class Trails:
    """The places of one drive's tracks in the last LENGTH seconds, in the global frame."""

    def __init__(self) -> None:
        self._scene = ""
        self._places: deque[tuple[int, dict[int, np.ndarray]]] = deque()  # us; id -> (3,) m

    def add(self, scene: str, timestamp: int, tracks: Tracks) -> None:
        """The tracks of the next frame; another drive begins anew."""
        if scene != self._scene:
            self._scene = scene
            self._places.clear()
        while self._places and timestamp - self._places[0][0] > LENGTH * 1e6:
            self._places.popleft()
        if not self._places or timestamp - self._places[-1][0] >= STEP * 1e6:
            self._places.append((timestamp, dict(zip(tracks.ids.tolist(), tracks.boxes.centers, strict=True))))

    def of(self, track: int) -> np.ndarray:
        """(P, 3) m, where a track was, oldest first."""
        return np.array([places[track] for _, places in self._places if track in places]).reshape(-1, 3)
