"""The bird's-eye-view (BEV) grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Reference = Literal["ego", "lidar"]


@dataclass(frozen=True)
class BevGrid:
    """A regular grid on the ground around the vehicle.

    Ranges and cell size are metres in the reference frame: `ego` has x forward and y left; `lidar` is the sensor's
    frame, as in mmdet3d checkpoints. Tensors on the grid are (..., rows, columns), with rows along y and columns along
    x, so that cell (0, 0) has the smallest x and y.
    """

    x: tuple[float, float] = (-51.2, 51.2)
    y: tuple[float, float] = (-51.2, 51.2)
    z: tuple[float, float] = (-3.0, 5.0)
    cell: float = 0.8
    reference: Reference = "ego"

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) = cells along y, cells along x."""
        return round((self.y[1] - self.y[0]) / self.cell), round((self.x[1] - self.x[0]) / self.cell)

    @property
    def cells(self) -> int:
        """Number of cells; also the index of the extra cell for padding."""
        rows, columns = self.shape
        return rows * columns

    def coarser(self, stride: int) -> BevGrid:
        """The same area with cells `stride` times as large."""
        return BevGrid(self.x, self.y, self.z, self.cell * stride, self.reference)

    def inside(self, points: np.ndarray) -> np.ndarray:
        """(N,) bool: points (N, >=3) inside the grid's volume; False for NaN."""
        x, y, z = points[:, 0], points[:, 1], points[:, 2]
        return (
            (x >= self.x[0]) & (x < self.x[1]) & (y >= self.y[0]) & (y < self.y[1]) & (z >= self.z[0]) & (z < self.z[1])
        )

    def continuous(self, points: np.ndarray) -> np.ndarray:
        """(N, 2) continuous column and row of points (N, >=2); cell i spans [i, i + 1)."""
        origin = np.array([self.x[0], self.y[0]])
        return (np.asarray(points, dtype=np.float64)[:, :2] - origin) / self.cell

    def centers(self) -> np.ndarray:
        """(rows, columns, 2) float32 x and y (m) of the cell centres."""
        rows, columns = self.shape
        xs = self.x[0] + (np.arange(columns) + 0.5) * self.cell
        ys = self.y[0] + (np.arange(rows) + 0.5) * self.cell
        return np.stack(np.meshgrid(xs, ys), axis=-1).astype(np.float32)
