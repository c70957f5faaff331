"""The HD map around the vehicle: BEV segmentation into overlapping layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from perception.datasets.keyframes import Keyframes
from perception.frame import Frame
from perception.grid import BevGrid
from perception.tasks.drawing import RasterLayer
from perception.tasks.map.config import MapHead
from perception.tasks.map.memory import MapMemory, pack_map, unpack_map
from perception.tasks.map.metric import MapMetric
from perception.tasks.task import Arrays, Memory, Output, Task
from perception.taxonomy import Taxonomy

if TYPE_CHECKING:
    from perception.tasks.network import TaskNetwork


class FusedMap(Memory[np.ndarray]):
    """Memory whose state is (layers, rows, columns) fused probabilities around the vehicle, on the results' grid."""

    def __init__(self, grid: BevGrid, taxonomy: Taxonomy) -> None:
        self._map = MapMemory(grid, [layer.share for layer in taxonomy.map_layers])
        self._unknown = np.full((len(taxonomy.map_layers), *grid.shape), np.nan, np.float32)

    def update(self, frame: Frame, result: np.ndarray | None) -> np.ndarray:
        self._map.update(self._unknown if result is None else result, frame.global_from_reference)
        return self._map.around(frame.global_from_reference)


class MapTask(Task[np.ndarray]):
    """BEV map segmentation; its result is (layers, rows, columns) probabilities."""

    name = "map"
    metric = MapMetric
    Config = MapHead

    def __init__(self, config: MapHead, grid: BevGrid, taxonomy: Taxonomy) -> None:
        super().__init__(config, grid, taxonomy)
        self.outputs = (Output("probabilities", "probability of each layer, on `head_grid`", taxonomy.map_names),)

    def network(self, channels: int) -> TaskNetwork:
        from perception.tasks.map.network import MapSegmentationHead

        return MapSegmentationHead(self.config, channels, len(self.taxonomy.map_layers))

    def labels(self, frame: Frame, source: Keyframes | None = None) -> dict[str, np.ndarray]:
        """`cells` (layers, rows, columns) uint8, and whether the location has a map (`known`)."""
        area = None if source is None else source.map(frame.location)
        if area is None:
            return {
                "cells": np.zeros((len(self.taxonomy.map_layers), *self.grid.shape), np.uint8),
                "known": np.array(False),
            }
        return {"cells": area.rasterize(frame, self.grid), "known": np.array(True)}

    def result(self, outputs: Arrays) -> np.ndarray:
        return outputs["probabilities"]

    def memory(self) -> FusedMap:
        return FusedMap(self.grid, self.taxonomy)

    def draw(self, frame: Frame, result: np.ndarray, state: np.ndarray | None) -> list[RasterLayer]:
        """The fused map."""
        return [] if state is None else [RasterLayer("map", state, self.grid, self.taxonomy.map_colours())]

    @staticmethod
    def pack(result: np.ndarray) -> dict[str, np.ndarray]:
        return {"levels": pack_map(result)}

    @staticmethod
    def unpack(arrays: Arrays) -> np.ndarray:
        return unpack_map(arrays["levels"])

    def finite(self, outputs: Arrays) -> tuple[Arrays, Mapping[str, int]]:
        """Values that are not finite are replaced by NaN, which the fused map ignores."""
        probabilities = outputs["probabilities"]
        wrong = ~np.isfinite(probabilities)
        if not wrong.any():
            return outputs, {}
        kept = np.where(wrong, np.nan, probabilities).astype(probabilities.dtype)
        return {"probabilities": kept}, {"probabilities": int(np.count_nonzero(wrong))}
