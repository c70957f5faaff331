"""What the occupancy head says of a frame, and its encoding for a file. numpy only."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from perception.grid import Reference, VoxelGrid

LEVELS = 253  # steps of the probabilities; an odd number, so that none is 0.5
_UNKNOWN = 255  # instead of a level


@dataclass(frozen=True)
class OccupancyResult:
    """Occupancy around the vehicle, in the frame's reference.

    Attributes:
        classes: (levels, rows, columns) uint8 index into `perception.grid.occupancy_classes`, the likeliest.
        occupied: (levels, rows, columns) float32 probability that a voxel is not free, a multiple of 1 / LEVELS; NaN
            where the network gave none.
        others: likewise, probability that it holds something of no point class.
        free: (360,) float32 m, free distance from the reference point by direction of one degree: direction 0 along x,
            then counter-clockwise.
        grid: of the voxels.
    """

    classes: np.ndarray
    occupied: np.ndarray
    others: np.ndarray
    free: np.ndarray
    grid: VoxelGrid = VoxelGrid()  # noqa: RUF009 - it is immutable


def levels_of(probabilities: np.ndarray) -> np.ndarray:
    """uint8 probabilities in steps of 1 / LEVELS; 255 for NaN."""
    levels = np.rint(np.nan_to_num(probabilities).clip(0, 1) * np.float32(LEVELS)).astype(np.uint8)
    levels[np.isnan(probabilities)] = _UNKNOWN
    return levels


def probabilities_of(levels: np.ndarray) -> np.ndarray:
    """float32 probabilities of the levels."""
    probabilities = levels / np.float32(LEVELS)
    probabilities[levels == _UNKNOWN] = np.nan
    return np.asarray(probabilities)


def pack(result: OccupancyResult) -> dict[str, np.ndarray]:
    """The result as small arrays."""
    grid = result.grid
    return {
        "classes": _compress(result.classes),
        "occupied": _compress(levels_of(result.occupied)),
        "others": _compress(levels_of(result.others)),
        "free": result.free,
        "grid": np.array([*grid.x, *grid.y, *grid.z, grid.cell, grid.edges[2], grid.reference == "ego"], np.float64),
    }


def unpack(arrays: Mapping[str, np.ndarray]) -> OccupancyResult:
    """The inverse of `pack`."""
    x0, x1, y0, y1, z0, z1, cell, height, ego = arrays["grid"].tolist()
    reference: Reference = "ego" if ego else "lidar"
    grid = VoxelGrid((x0, x1), (y0, y1), (z0, z1), cell, reference, None if height == cell else height)
    classes, occupied, others = (
        np.frombuffer(zlib.decompress(arrays[name].tobytes()), np.uint8).reshape(grid.shape)
        for name in ("classes", "occupied", "others")
    )
    return OccupancyResult(classes, probabilities_of(occupied), probabilities_of(others), arrays["free"], grid)


def _compress(values: np.ndarray) -> np.ndarray:
    return np.frombuffer(zlib.compress(np.ascontiguousarray(values, np.uint8).tobytes(), 1), np.uint8)
