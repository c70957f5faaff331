"""Configuration of the occupancy head."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from perception.grid import BevGrid, Reference
from perception.section import Positive, Section
from perception.tasks.occupancy.placement import require_overlap
from perception.tasks.task import TaskConfig
from perception.taxonomy import Metres, Name, Taxonomy
from perception.voxels import VoxelGrid, occupancy_classes

Weight = Annotated[float, Field(ge=0)]
Range = Annotated[tuple[float, float], Field(strict=False)]  # m, from and to


class OccupancyLosses(Section):
    """Weights of the loss terms; 0 omits a term."""

    cross_entropy: Weight = 1.0
    lovasz: Weight = 1.0
    geometric: Weight = 1.0  # scale loss of what is occupied
    semantic: Weight = 1.0  # scale loss of the classes
    classes: dict[Name, Weight] = Field(default={})  # of classes in the cross-entropy, `free` too; others have 1


class OccupancyHead(TaskConfig):
    x: Range = (-40.0, 40.0)
    y: Range = (-40.0, 40.0)
    z: Range = (-1.0, 5.4)
    cell: Metres = 0.4  # m, edge of a voxel along x and y
    height: Metres | None = None  # m, along z; None: as long
    channels: Positive = 64
    observed: Literal["lidar", "cameras", "either"] = "either"  # voxels that are learned: those that these saw
    body: Range = (0.3, 2.0)  # m, z of what stops the vehicle, for the free distances
    # Point classes that a vehicle drives over, or could; names that the taxonomy lacks are ignored.
    flat: tuple[Name, ...] = Field(default=("driveable_surface", "other_flat", "sidewalk", "terrain"), strict=False)
    odds: Annotated[float, Field(gt=0)] = 1.0  # times that a class must be as likely as free space to be in `classes`
    losses: OccupancyLosses = OccupancyLosses()

    @model_validator(mode="after")
    def _whole_voxels(self) -> OccupancyHead:
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
            raise ValueError(f"losses.classes: {unknown[0]!r} is none of {', '.join(known)}")

    def require_grid(self, grid: BevGrid) -> None:
        require_overlap(self.voxels(grid.reference), grid)
