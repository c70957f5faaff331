"""Result of the occupancy head for one frame. numpy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from perception.grid import VoxelGrid

LEVELS = 253  # steps of the probabilities; an odd number, so that none is 0.5
UNKNOWN = 255  # level of NaN


@dataclass(frozen=True)
class OccupancyResult:
    """Occupancy around the vehicle, in the frame's reference.

    Probabilities are multiples of 1 / LEVELS, NaN where the network gave none. Free distances are from the reference
    point by direction of one degree: direction 0 along x, then counter-clockwise.
    """

    classes: np.ndarray  # (levels, rows, columns) uint8 index into `perception.grid.occupancy_classes`, the likeliest
    occupied: np.ndarray  # (levels, rows, columns) float32 probability that a voxel is not free
    others: np.ndarray  # likewise, that it holds something of no point class
    free: np.ndarray  # (360,) float32 m
    grid: VoxelGrid = VoxelGrid()  # noqa: RUF009 - it is immutable


def levels_of(probabilities: np.ndarray) -> np.ndarray:
    """uint8 probabilities in steps of 1 / LEVELS; 255 for NaN."""
    levels = np.rint(np.nan_to_num(probabilities).clip(0, 1) * np.float32(LEVELS)).astype(np.uint8)
    levels[np.isnan(probabilities)] = UNKNOWN
    return levels


def probabilities_of(levels: np.ndarray) -> np.ndarray:
    """float32 probabilities of the levels."""
    probabilities = levels / np.float32(LEVELS)
    probabilities[levels == UNKNOWN] = np.nan
    return np.asarray(probabilities)
