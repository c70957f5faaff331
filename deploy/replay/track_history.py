"""The recent positions of tracked objects."""

from __future__ import annotations

from collections import deque

import numpy as np

from perception.tasks.drawing import BoxLayer

LENGTH = 4.0  # s
STEP = 0.4  # s, the least time between positions of a trail


class Trails:
    """The positions of a layer's boxes in the last LENGTH seconds of a drive, in the global frame."""

    def __init__(self) -> None:
        self._scene = ""
        self._positions: deque[tuple[int, dict[str, np.ndarray]]] = deque()  # us; id -> (3,) m

    def add(self, scene: str, timestamp: int, layer: BoxLayer) -> None:
        """Add the layer of the next frame; a new drive clears the history."""
        if scene != self._scene:
            self._scene = scene
            self._positions.clear()
        while self._positions and timestamp - self._positions[0][0] > LENGTH * 1e6:
            self._positions.popleft()
        if not self._positions or timestamp - self._positions[-1][0] >= STEP * 1e6:
            self._positions.append((timestamp, dict(zip(layer.ids, layer.boxes.centers, strict=True))))

    def positions(self, track: str) -> np.ndarray:
        """The positions (P, 3) in m of the box with this id, oldest first."""
        return np.array([centers[track] for _, centers in self._positions if track in centers]).reshape(-1, 3)
