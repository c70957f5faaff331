"""Configuration of the parts of the network: grid, sensors, fusion and trunk."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from perception.grid import BevGrid, Reference
from perception.io.section import Positive, Range, Section, Share, Sizes
from perception.sensors import SensorConfigs
from perception.sensors.camera.config import CameraBranch
from perception.sensors.lidar.config import Lidar


class Grid(Section):
    x: Range = (-51.2, 51.2)  # m: from, to
    y: Range = (-51.2, 51.2)  # m: from, to
    z: Range = (-3.0, 5.0)  # m: from, to
    cell: float = 0.8  # m, side of a pillar
    reference: Reference = "ego"  # origin of the grid: the vehicle or its first LiDAR

    def build(self) -> BevGrid:
        return BevGrid(self.x, self.y, self.z, self.cell, self.reference)


class Trunk(Section):
    """2-D BEV trunk: stages, each coarser than the last, joined at the heads' stride; see `bev/`."""

    kind: Literal["second", "convnext"] = "second"  # of the blocks
    channels: Sizes = (64, 128, 256)  # of each stage
    blocks: Sizes = (3, 5, 5)  # of each stage; second: 3x3 convolutions after the strided one
    strides: Sizes = (2, 2, 2)  # of each stage, to the one before
    up_channels: Positive = 128  # of each stage where all are joined
    stride: Positive = 4  # of the head's cells, in pillars
    down: Literal["overlap", "patch"] = "overlap"  # kernel of finer stages: 3x3, or of the size of its stride
    pyramid: bool = False  # one feature map for each stage, on its own grid
    kernels: Sizes = ()  # for convnext: of the depthwise convolutions
    first_joined: Annotated[int, Field(ge=0)] = 0  # for convnext: stages before this one are not joined
    drop_path: Share = 0.0  # for convnext: chance that the last block is skipped in training; the first never is

    @model_validator(mode="after")
    def _require_stages(self) -> Trunk:
        if not len(self.channels) == len(self.blocks) == len(self.strides):
            raise ValueError("channels, blocks and strides must have the same length")
        if self.kind == "second":
            if self.kernels or self.first_joined or self.drop_path:
                raise ValueError("`kernels`, `first_joined` and `drop_path` are for the kind `convnext`")
        elif len(self.kernels) != len(self.channels) or not all(kernel % 2 for kernel in self.kernels):
            raise ValueError("the kind `convnext` needs `kernels`, an odd number for each stage")
        elif self.first_joined >= len(self.channels):
            raise ValueError(f"first_joined must be the index of a stage, 0 to {len(self.channels) - 1}")
        elif self.pyramid:
            raise ValueError("`pyramid` is for the kind `second`")
        return self


class Model(Section):
    lidar: Lidar | None = Lidar()  # the LiDAR's branch; None: a network without LiDAR
    camera: CameraBranch | None = None  # the cameras' branch; None: a network without cameras
    scanners: SensorConfigs = Field(default={})  # branches of further kinds of sensors, by kind
    fusion: bool = True  # False: the trunk reads the feature map of the single sensor
    fused_channels: Positive = 64  # of the fused map
    fused_stride: Positive = 1  # of the fused map's cells, in pillars
    trunk: Trunk = Trunk()  # the network behind the fused map

    @field_validator("scanners")
    @classmethod
    def _require_further_kinds(cls, scanners: dict[str, Section]) -> dict[str, Section]:
        if named := sorted({"lidar", "camera"} & scanners.keys()):
            raise ValueError(f"{named[0]} has a place of its own; write `model.{named[0]}`")
        return scanners

    @property
    def sensors(self) -> dict[str, Section]:
        """Kind of sensor -> configuration of its branch, for those that the network has."""
        found = {"lidar": self.lidar, "camera": self.camera, **self.scanners}
        return {kind: config for kind, config in found.items() if config is not None}

    @model_validator(mode="after")
    def _require_sensors(self) -> Model:
        if not self.sensors:
            raise ValueError("the model has no sensor; give `lidar`, `camera` or `scanners`")
        channels = None if self.lidar is None or len(self.sensors) > 1 else self.lidar.channels
        if not self.fusion and (self.fused_channels, self.fused_stride) != (channels, 1):
            raise ValueError("without `fusion` there is LiDAR alone, with `fused_channels` its own, `fused_stride` 1")
        return self
