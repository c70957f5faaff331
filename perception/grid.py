"""The bird's-eye-view grid on which every sensor meets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Reference = Literal["ego", "lidar"]


@dataclass(frozen=True)
class BevGrid:
    """A regular grid over the ground around the vehicle.

    Ranges and cell size are metres in the reference frame: `ego` has x forward and y left; `lidar` is the
    sensor's own frame, which mmdet3d checkpoints use. Tensors on the grid are (..., rows, columns), where the
    row runs along y and the column along x, so that cell (0, 0) is the corner of smallest x and y.
    """

    x: tuple[float, float] = (-51.2, 51.2)
    y: tuple[float, float] = (-51.2, 51.2)
    z: tuple[float, float] = (-5.0, 3.0)
    cell: float = 0.8
    reference: Reference = "ego"

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) = cells along y, cells along x."""
        return round((self.y[1] - self.y[0]) / self.cell), round((self.x[1] - self.x[0]) / self.cell)

    @property
    def cells(self) -> int:
        """Number of cells; also the index of the dummy cell that takes padding."""
        rows, columns = self.shape
        return rows * columns

    def coarser(self, stride: int) -> BevGrid:
        """The same ground in cells `stride` times as large."""
        return BevGrid(self.x, self.y, self.z, self.cell * stride, self.reference)

    def inside(self, points: np.ndarray) -> np.ndarray:
        """(N,) bool: which of the points (N, >=3) lie in the grid's volume; NaN lies outside."""
        x, y, z = points[:, 0], points[:, 1], points[:, 2]
        return (
            (x >= self.x[0]) & (x < self.x[1]) & (y >= self.y[0]) & (y < self.y[1]) & (z >= self.z[0]) & (z < self.z[1])
        )

    def continuous(self, points: np.ndarray) -> np.ndarray:
        """(N, 2) column and row of points (N, >=2) as real numbers; cell i spans [i, i + 1)."""
        origin = np.array([self.x[0], self.y[0]])
        return (np.asarray(points, dtype=np.float64)[:, :2] - origin) / self.cell

    def centers(self) -> np.ndarray:
        """(rows, columns, 2) x and y of every cell's middle, metres, float32."""
        rows, columns = self.shape
        xs = self.x[0] + (np.arange(columns) + 0.5) * self.cell
        ys = self.y[0] + (np.arange(rows) + 0.5) * self.cell
        return np.stack(np.meshgrid(xs, ys), axis=-1).astype(np.float32)
