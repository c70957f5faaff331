"""Semantic occupancy: what each voxel around the vehicle holds. numpy only.

Classes are those of Occ3D-nuScenes (Tian et al., 2023): 0 for objects of none of the taxonomy's point classes, then
these in their order, then free space.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from perception.grid import Reference
from perception.taxonomy import Taxonomy

OTHERS = 0  # class of what is there and of no point class


def occupancy_classes(taxonomy: Taxonomy) -> tuple[str, ...]:
    """Names of the classes of voxels; the last is free space."""
    return *taxonomy.voxel_names, "free"


@dataclass(frozen=True)
class VoxelGrid:
    """Voxels around the vehicle; ranges and edge lengths in m, in the reference frame as of `BevGrid`.

    Arrays on the grid are (levels, rows, columns): levels along z, rows along y, columns along x, from small to large.

    Attributes:
        cell: edge along x and y.
        height: edge along z; None: as long.
    """

    x: tuple[float, float] = (-40.0, 40.0)
    y: tuple[float, float] = (-40.0, 40.0)
    z: tuple[float, float] = (-1.0, 5.4)
    cell: float = 0.4
    reference: Reference = "ego"
    height: float | None = None

    @property
    def edges(self) -> np.ndarray:
        """(3,) m, edges of a voxel along x, y and z."""
        return np.array([self.cell, self.cell, self.cell if self.height is None else self.height])

    @property
    def shape(self) -> tuple[int, int, int]:
        """(levels, rows, columns)."""
        columns, rows, levels = (
            round((high - low) / edge)
            for (low, high), edge in zip((self.x, self.y, self.z), self.edges.tolist(), strict=True)
        )
        return levels, rows, columns

    def indices(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N,) flat voxel index of points (N, >=3), and (N,) bool whether they are inside; the index is 0 outside."""
        low = np.array([self.x[0], self.y[0], self.z[0]])
        place = np.floor((points[:, :3].astype(np.float64) - low) / self.edges)
        levels, rows, columns = self.shape
        inside = np.asarray(((place >= 0) & (place < (columns, rows, levels))).all(axis=1))
        column, row, level = np.where(inside[:, None], place, 0).astype(np.int64).T
        return (level * rows + row) * columns + column, inside

    def centers(self) -> np.ndarray:
        """(levels, rows, columns, 3) float32 x y z (m) of the voxels' centres."""
        zs, ys, xs = (
            low + (np.arange(count) + 0.5) * edge
            for count, (low, _), edge in zip(
                self.shape, (self.z, self.y, self.x), self.edges[::-1].tolist(), strict=True
            )
        )
        z, y, x = np.meshgrid(zs, ys, xs, indexing="ij")
        return np.stack([x, y, z], axis=-1).astype(np.float32)


@dataclass(frozen=True)
class Occupancy:
    """Annotated voxels of a keyframe, in the reference frame of the grid at the keyframe's time."""

    grid: VoxelGrid
    classes: np.ndarray  # (levels, rows, columns) uint8 index into `occupancy_classes`
    seen_by_lidar: np.ndarray  # (levels, rows, columns) bool; others are unknown to it
    seen_by_cameras: np.ndarray  # (levels, rows, columns) bool
