"""Keyframes with voxels and unknown obstacles that no simulator made: whatever a test needs."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from vocabulary import NUSCENES

from perception.datasets.keyframes import NO_SENSORS, Annotation, Reads, Recording, assemble
from perception.frame import Boxes, Frame
from perception.grid import Occupancy, VoxelGrid, occupancy_classes

CLASSES = occupancy_classes(NUSCENES)
FREE = len(CLASSES) - 1
SMALL = VoxelGrid((-25.6, 25.6), (-25.6, 25.6), (-1.0, 5.4), 3.2)


def random_occupancy(token: str, grid: VoxelGrid = SMALL) -> Occupancy:
    """Voxels of every class, most of them free; equal tokens give equal ones."""
    rng = np.random.default_rng([*token.encode()])
    classes = np.where(rng.random(grid.shape) < 0.6, FREE, rng.integers(0, FREE, grid.shape)).astype(np.uint8)
    return Occupancy(grid, classes, rng.random(grid.shape) < 0.6, rng.random(grid.shape) < 0.6)


class Occupied:
    """Another source of keyframes, with annotated voxels.

    Args:
        tables: all else.
        occupancy: token -> voxels.
        obstacles: token -> obstacles in the global frame.
    """

    def __init__(
        self,
        tables: Any,
        occupancy: Callable[[str], Occupancy] = random_occupancy,
        obstacles: Callable[[str], Boxes | None] = lambda token: None,
    ) -> None:
        self._tables, self._occupancy, self._obstacles = tables, occupancy, obstacles

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tables, name)

    def recording(self, token: str, reads: Reads = NO_SENSORS) -> Recording:
        found: Recording = self._tables.recording(token, reads)
        own = {
            "occupancy": Annotation(partial(self._occupancy, token)),
            "obstacles": Annotation(partial(self._obstacles, token)),
        }
        return replace(found, truth={**found.truth, **own})

    def frame(self, token: str, reads: Reads = Reads()) -> Frame:  # noqa: B008 - it is immutable
        return assemble(self.recording(token, reads), reads)
