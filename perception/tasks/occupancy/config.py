"""Configuration of the occupancy head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from perception.errors import suggestion
from perception.grid import BevGrid, Reference, VoxelGrid, occupancy_classes
from perception.io.section import Positive, Range, Section, Weight
from perception.tasks.task import TaskConfig
from perception.taxonomy import Metres, Name, Taxonomy

_ROUNDING = 1e-6  # cells


@dataclass(frozen=True)
class Placement:
    """The part of a feature map (rows, columns) that covers the voxels, and how its cells become columns of voxels."""

    row: int  # of the first cell of the map; negative where the voxels begin outside it
    column: int  # likewise
    rows: int  # number of cells of the map
    columns: int  # likewise
    finer: int  # columns of voxels along each side of a cell
    coarser: int  # cells along each side of a voxel; one of both is 1

    @staticmethod
    def of(voxels: VoxelGrid, grid: BevGrid) -> Placement | None:
        """The placement of voxels on the grid of the heads; None if the edges of voxels and cells do not meet."""
        finer, coarser = _as_integer(grid.cell / voxels.cell), _as_integer(voxels.cell / grid.cell)
        if finer is None and coarser is None:
            return None
        places = []
        for (low, high), start in ((voxels.y, grid.y[0]), (voxels.x, grid.x[0])):
            first, count = _as_integer((low - start) / grid.cell), _as_integer((high - low) / grid.cell)
            if first is None or count is None:
                return None
            places.append((first, count))
        (row, rows), (column, columns) = places
        return Placement(row, column, rows, columns, finer or 1, coarser or 1)


@dataclass(frozen=True)
class Sampling:
    """Places at which a feature map is sampled, where no `Placement` fits: centres of squares of voxel columns."""

    places: np.ndarray  # (rows, columns, 2) float32 x and y, from -1 to 1 between the outer edges of the map
    finer: int  # columns of voxels along each side of a square

    @staticmethod
    def of(voxels: VoxelGrid, grid: BevGrid) -> Sampling:
        """Squares as large as the cells of the heads' grid, if whole ones make up the voxels; at least a column."""
        finer = max(1, int(grid.cell / voxels.cell + _ROUNDING))
        if any(count % finer for count in voxels.shape[1:]):
            finer = 1
        low, high = np.transpose([grid.x, grid.y])
        centers = BevGrid(voxels.x, voxels.y, cell=voxels.cell * finer).centers()
        return Sampling((2 * (centers - low) / (high - low) - 1).astype(np.float32), finer)


def require_overlap(voxels: VoxelGrid, grid: BevGrid) -> None:
    """Raise ValueError if voxels and grid have no area in common."""
    for axis, (low, high), (start, end) in (("y", voxels.y, grid.y), ("x", voxels.x, grid.x)):
        if low >= end or high <= start:
            raise ValueError(f"{axis}: {low:g} to {high:g} m is outside the grid, {start:g} to {end:g} m")


def _as_integer(number: float) -> int | None:
    """The integer that a number is, up to rounding; None if it is none."""
    nearest = round(number)
    return nearest if abs(number - nearest) < _ROUNDING and (nearest or abs(number) < _ROUNDING) else None


class OccupancyLosses(Section):
    """Weights of the loss terms; 0 omits a term."""

    cross_entropy: Weight = 1.0  # weight
    lovasz: Weight = 1.0  # weight of the Lovász-softmax loss
    geometric: Weight = 1.0  # scale loss of what is occupied
    semantic: Weight = 1.0  # scale loss of the classes
    classes: dict[Name, Weight] = Field(default={})  # of classes in the cross-entropy, `free` too; others have 1


class OccupancyHead(TaskConfig):
    names_points: ClassVar[bool] = True
    x: Range = (-40.0, 40.0)  # m
    y: Range = (-40.0, 40.0)  # m, from, to
    z: Range = (-1.0, 5.4)  # m, from, to
    cell: Metres = 0.4  # m, edge of a voxel along x and y
    height: Metres | None = None  # m, along z; None: as long
    channels: Positive = 64  # of the head's hidden layer
    observed: Literal["lidar", "cameras", "either"] = "either"  # voxels that are learned: those that these saw
    body: Range = (0.3, 2.0)  # m, z of what stops the vehicle, for the free distances
    # Point classes that a vehicle drives over, or could; names that the taxonomy lacks are ignored.
    flat: tuple[Name, ...] = Field(default=("driveable_surface", "other_flat", "sidewalk", "terrain"), strict=False)
    odds: Annotated[float, Field(gt=0)] = 1.0  # times that a class must be as likely as free space to be in `classes`
    losses: OccupancyLosses = OccupancyLosses()

    @model_validator(mode="after")
    def _require_whole_voxels(self) -> OccupancyHead:
        height = self.height or self.cell
        for axis, (low, high), edge in (("x", self.x, self.cell), ("y", self.y, self.cell), ("z", self.z, height)):
            count = (high - low) / edge
            if count < 0.5 or abs(count - round(count)) > 1e-6:
                raise ValueError(f"{axis}: {low:g} to {high:g} m is not a whole number of voxels of {edge:g} m")
        if not self.z[0] < self.body[1] or not self.body[0] < self.z[1] or not self.body[0] < self.body[1]:
            raise ValueError(f"body: no voxel is {self.body[0]:g} to {self.body[1]:g} m high")
        return self

    def voxels(self, reference: Reference) -> VoxelGrid:
        return VoxelGrid(self.x, self.y, self.z, self.cell, reference, self.height)

    def require_taxonomy(self, taxonomy: Taxonomy) -> None:
        if not taxonomy.point_classes:
            raise ValueError(f"the taxonomy {taxonomy.name} has no point classes")
        known = occupancy_classes(taxonomy)
        if unknown := [name for name in self.losses.classes if name not in known]:
            raise ValueError(
                f"losses.classes: {unknown[0]!r} is none of {', '.join(known)}{suggestion(unknown[0], known)}"
            )

    def require_grid(self, grid: BevGrid) -> None:
        require_overlap(self.voxels(grid.reference), grid)
