"""The frames of an evaluation and what is true in them, as columns, so that any part of them can be scored."""

from __future__ import annotations

from functools import cache, cached_property

import numpy as np

from perception.datasets.keyframes import Keyframes
from perception.datasets.nuscenes.map_expansion import MapExpansion
from perception.errors import InputError
from perception.frame import Conditions, Frame, Prediction
from perception.grid import BevGrid
from perception.tasks.detection.columns import BoxColumns
from perception.tasks.map.counts import count_rings, predicted_cells


class Annotated:
    """F frames in the order in which they are added; the sensors' data are not held.

    Args:
        grid: of the pillars; the map head's covers the same ground in fewer cells.
    """

    def __init__(self, tables: Keyframes, grid: BevGrid) -> None:
        self.tables, self.grid = tables, grid
        self.tokens: list[str] = []
        self.scenes: list[str] = []
        self.conditions: list[Conditions] = []
        self._egos: list[np.ndarray] = []
        self._map = cache(lambda location: MapExpansion.load(tables.dataroot, location))

    def add(self, frame: Frame) -> None:
        self.tokens.append(frame.token)
        self.scenes.append(frame.scene)
        self.conditions.append(frame.conditions)
        self._egos.append(frame.global_from_ego[:2, 3])

    @property
    def egos(self) -> np.ndarray:
        """(F, 2) m, where the vehicle is, in the global frame."""
        return np.array(self._egos, np.float64).reshape(-1, 2)

    @cached_property
    def racks(self) -> np.ndarray:
        """(K, 11) frame, then centre, size and rotation of the annotated bicycle racks."""
        racks = self.tables.racks()
        rows = [[i, *rack] for i, token in enumerate(self.tokens) for rack in racks.get(token, [])]
        return np.array(rows, np.float64).reshape(-1, 11)

    def truth(self) -> BoxColumns:
        """Annotations that count.

        Raises:
            InputError: the version has no annotations.
        """
        parts = []
        for i, token in enumerate(self.tokens):
            boxes = self.tables.boxes(token)
            if boxes is None:
                raise InputError(f"{self.tables.dataroot}: {self.tables.version} has no annotations to score with")
            parts.append(BoxColumns.of_frame(boxes, i))
        return self.counted(BoxColumns.joined(parts))

    def counted(self, boxes: BoxColumns) -> BoxColumns:
        """Those that the devkit scores."""
        return boxes.counted(self.egos, self.racks)

    def map_truth(self, frame: Frame, prediction: Prediction) -> np.ndarray | None:
        """(6, rows, columns) uint8 on the grid of the predicted map; None without a map head or a map."""
        if prediction.map_probabilities is None or (expansion := self._map(frame.location)) is None:
            return None
        return expansion.rasterize(frame, self._map_grid(prediction.map_probabilities))

    def map_counts(self, prediction: Prediction, truth: np.ndarray) -> np.ndarray:
        """(3, 6, rings) of the predicted map against `map_truth`, as count_rings has them."""
        assert prediction.map_probabilities is not None
        cells = predicted_cells(prediction.map_probabilities)
        return count_rings(cells, truth, self._map_grid(cells))

    def _map_grid(self, cells: np.ndarray) -> BevGrid:
        return self.grid.coarser(self.grid.shape[0] // cells.shape[1])
