"""The recent places of tracked objects."""

from __future__ import annotations

from collections import deque

import numpy as np

from perception.tasks.drawing import BoxLayer

LENGTH = 4.0  # s
STEP = 0.4  # s between the places of a trail at least


class Trails:
    """The places of the boxes of one layer in the last LENGTH seconds of a drive, in the global frame."""

    def __init__(self) -> None:
        self._scene = ""
        self._places: deque[tuple[int, dict[str, np.ndarray]]] = deque()  # us; id -> (3,) m

    def add(self, scene: str, timestamp: int, layer: BoxLayer) -> None:
        """Add the layer of the next frame; another drive begins anew."""
        if scene != self._scene:
            self._scene = scene
            self._places.clear()
        while self._places and timestamp - self._places[0][0] > LENGTH * 1e6:
            self._places.popleft()
        if not self._places or timestamp - self._places[-1][0] >= STEP * 1e6:
            self._places.append((timestamp, dict(zip(layer.ids, layer.boxes.centers, strict=True))))

    def of(self, track: str) -> np.ndarray:
        """(P, 3) m, where the box with this id was, oldest first."""
        return np.array([places[track] for _, places in self._places if track in places]).reshape(-1, 3)
