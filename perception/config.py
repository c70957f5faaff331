"""Typed configuration: one YAML file describes grid, data, model and training. Unknown keys are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from perception.frame import CLASSES
from perception.grid import BevGrid, Reference
from perception.modules.spec import Module
from perception.section import Section, load_section, parse_section

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Grid(Section):
    x: tuple[float, float] = Field(default=(-51.2, 51.2), strict=False)  # m
    y: tuple[float, float] = Field(default=(-51.2, 51.2), strict=False)  # m
    z: tuple[float, float] = Field(default=(-5.0, 3.0), strict=False)  # m
    cell: float = 0.8  # m, side of a pillar
    reference: Reference = "ego"

    def build(self) -> BevGrid:
        return BevGrid(self.x, self.y, self.z, self.cell, self.reference)


class Image(Section):
    """Size of the pictures that the network sees: the recorded width is scaled to `width`, the top is cut off."""

    height: Positive = 256
    width: Positive = 704


class Lidar(Section):
    max_pillars: Positive = 30000
    overflow: Literal["fullest", "first"] = "fullest"  # which pillars stay; first: as mmdet3d's voxelisation has it
    points_per_pillar: Positive = 20
    channels: Positive = 64
    encoder: Literal["masked", "padded"] = "masked"  # padded: as mmdet3d's, sensors/lidar/voxel_features.py
    hidden: tuple[Positive, ...] = Field(default=(), strict=False)  # of padded: channels of the layers before the last
    sweeps: Annotated[int, Field(ge=0, le=10)] = 10  # past sweeps beside the keyframe

    @model_validator(mode="after")
    def _layers(self) -> Lidar:
        if self.hidden and self.encoder != "padded":
            raise ValueError("`hidden` layers are for the encoder `padded`")
        return self


class Depth(Section):
    """Bins of the depth distribution, metres along the optical axis."""

    near: float = 1.0
    far: float = 60.0
    bins: Positive = 59


class CameraBranch(Section):
    backbone: str = "resnet50"  # any timm model with features_only
    weights: str | None = None  # a safetensors file for that backbone; None starts from random numbers
    stages: tuple[int, ...] = Field(default=(2, 3), strict=False)  # timm feature levels that the FPN joins
    channels: Positive = 80
    image: Image = Image()
    depth: Depth = Depth()
    heights: tuple[float, ...] = Field(default=(-1.0, 0.0, 1.0, 2.0), strict=False)  # m, z of a cell's voxels
    stride: Positive = 4  # BEV cells of this branch, in pillars


class Trunk(Section):
    """2-D BEV trunk after SECOND: stages of convolutions, each halving the grid, joined at the head's stride."""

    channels: tuple[Positive, ...] = Field(default=(64, 128, 256), strict=False)
    blocks: tuple[Positive, ...] = Field(default=(3, 5, 5), strict=False)  # 3x3 convolutions after the strided one
    strides: tuple[Positive, ...] = Field(default=(2, 2, 2), strict=False)
    up_channels: Positive = 128
    stride: Positive = 4  # of the head's cells, in pillars
    down: Literal["overlap", "patch"] = "overlap"  # stages finer than that: 3x3, or a kernel as large as its stride
    pyramid: bool = False  # a map for each stage, on its own grid, instead of one

    @model_validator(mode="after")
    def _lengths(self) -> Trunk:
        if not len(self.channels) == len(self.blocks) == len(self.strides):
            raise ValueError("channels, blocks and strides must have the same length")
        return self


class Suppression(Section):
    """Which of the boxes that a network gives are left out, behind the graph: `tasks/detection/nms.py`."""

    threshold: Share  # scores up to it are left out
    low: tuple[float, float, float] | None = Field(default=None, strict=False)  # m, of the centres that stay
    high: tuple[float, float, float] | None = Field(default=None, strict=False)  # m
    kind: Literal["circle", "rotated"]  # what is near a better box of its group: by distance, or by overlap
    radii: tuple[float, ...] = Field(default=(), strict=False)  # m, of circle: for each group
    overlap: Share = 0.2  # of rotated: intersection over union from which the worse box goes
    most: Positive | None = 83  # boxes of a group that stay
    total: Positive | None = None  # boxes of all groups that stay


class DetectionHead(Section):
    channels: Positive = 64
    groups: tuple[Annotated[tuple[str, ...], Field(strict=False)], ...] = Field(
        default=(CLASSES,), strict=False
    )  # classes with regression and best boxes of their own; in the order of CLASSES
    top_k: Annotated[int, Field(gt=0, lt=3840)] = 300  # boxes of each group; TensorRT's TopK limit
    output_kernel: Literal[1, 3] = 1  # of the last convolutions
    attributes: Literal["learned", "speed"] = "learned"
    suppression: Suppression | None = None  # None: only peaks of the heat maps are boxes
    min_radius: Annotated[int, Field(ge=0)] = 2  # cells, of the heat map's Gaussians

    @model_validator(mode="after")
    def _groups(self) -> DetectionHead:
        if tuple(name for group in self.groups for name in group) != CLASSES or () in self.groups:
            raise ValueError(f"the groups, one after the other, must be {', '.join(CLASSES)}")
        if self.suppression and self.suppression.kind == "circle" and len(self.suppression.radii) != len(self.groups):
            raise ValueError("suppression.radii must have a radius for each group")
        return self


class Anchor(Section):
    """A box that objects are told from, at the middle of each of the map's cells."""

    size: tuple[float, float, float] = Field(strict=False)  # m: width, length, height
    bottom: float  # m, z of the underside
    x: tuple[float, float] = Field(strict=False)  # m, over which the map's cells are spread
    y: tuple[float, float] = Field(strict=False)


class AnchorHead(Section):
    anchors: tuple[Anchor, ...] = Field(strict=False, min_length=1)
    rotations: tuple[float, ...] = Field(default=(0.0, 1.57), strict=False)  # rad, of each anchor
    scales: tuple[Positive, ...] = Field(default=(1,), strict=False)  # of the anchors on each of the trunk's maps
    direction_offset: float = 0.0  # rad; from here on, half a turn is one direction, the next the other
    direction_limit_offset: float = 0.0  # turns of pi
    candidates: Positive = 1000  # boxes of each map that the best are looked for among
    suppression: Suppression = Suppression(threshold=0.05, kind="rotated", most=None, total=500)

    @model_validator(mode="after")
    def _sorted_in_the_graph(self) -> AnchorHead:
        if self.candidates * len(self.scales) >= 3840:
            raise ValueError("candidates of all maps together must be fewer than 3840, TensorRT's TopK limit")
        return self


class MapHead(Section):
    channels: Positive = 64


class Model(Section):
    lidar: Lidar | None = Lidar()
    camera: CameraBranch | None = None
    fusion: bool = True  # False: the one sensor's map goes into the trunk as it is
    fused_channels: Positive = 64
    fused_stride: Positive = 1  # cells of the fused map, in pillars
    trunk: Trunk = Trunk()
    detection: DetectionHead = DetectionHead()
    anchors: AnchorHead | None = None  # detects instead of `detection`
    map: MapHead | None = MapHead()

    @model_validator(mode="after")
    def _a_sensor(self) -> Model:
        if self.lidar is None and self.camera is None:
            raise ValueError("the model needs `lidar`, `camera` or both")
        return self

    @model_validator(mode="after")
    def _maps_for_the_heads(self) -> Model:
        maps = len(self.trunk.channels) if self.trunk.pyramid else 1
        if self.anchors and len(self.anchors.scales) != maps:
            raise ValueError(f"anchors.scales must have one for each of the trunk's maps, {maps}")
        if self.trunk.pyramid and (self.anchors is None or self.map is not None):
            raise ValueError("a trunk with `pyramid` is for `anchors`, without `map`")
        return self

    @property
    def suppression(self) -> Suppression | None:
        """Of the boxes that the network gives."""
        return self.anchors.suppression if self.anchors else self.detection.suppression

    @model_validator(mode="after")
    def _nothing_to_fuse(self) -> Model:
        if not self.fusion:
            alone = self.lidar is not None and self.camera is None
            if not alone or self.lidar is None or (self.fused_channels, self.fused_stride) != (self.lidar.channels, 1):
                raise ValueError(
                    "without `fusion` there is LiDAR alone, with `fused_channels` its own, `fused_stride` 1"
                )
        return self


class LearnedRouting(Section):
    """A network chooses the modules after the fusion (`perception/modules/routing/learned.py`)."""

    kind: Literal["learned"]
    choose: Literal["soft", "top_k", "gumbel", "reinforce"] = "soft"
    modules: tuple[str, ...] = Field(default=(), strict=False)  # the options; empty: all that are after the fusion
    k: Positive = 1  # options that top_k keeps; the base alone is one of them
    level: Literal["global", "slot", "cell"] = "global"
    temperature: Annotated[float, Field(gt=0)] = 1.0  # of gumbel
    balance: Annotated[float, Field(ge=0)] = 0.0  # weight of the load-balancing loss
    supervise: Annotated[float, Field(ge=0)] = 0.0  # weight of the cross-entropy with what the tags choose


class ClassifierRouting(Section):
    """The conditions are recognised and choose the modules after the fusion, as tags would."""

    kind: Literal["classifier"]
    confidence: Share = 0.5  # a condition less probable than this is not known
    supervise: Annotated[float, Field(gt=0)] = 1.0  # weight of the classifier's loss


class Augment(Section):
    flip: bool = True  # mirror the bird's-eye view left-right and front-back
    rotation: float = 0.39  # rad, largest turn about z
    scale: float = 0.05  # largest relative change of size
    translation: float = 0.5  # m, standard deviation of the shift
    image_scale: float = 0.06  # largest relative change of the picture's size
    image_flip: bool = True


class Data(Section):
    scenes: tuple[str, ...] = Field(
        default=(), strict=False
    )  # of the split; empty: all. scene-0103:0-4 takes keyframes 0 to 3
    workers: Annotated[int, Field(ge=0)] = 0
    class_balanced: bool = True
    augment: Augment | None = Augment()


class Train(Section):
    steps: Positive = 1000
    batch: Positive = 4
    learning_rate: float = 2e-3  # peak of the one-cycle schedule
    weight_decay: float = 0.01
    gradient_clip: float = 35.0  # largest norm
    drop_lidar: Share = 0.0  # share of the frames that train without LiDAR
    drop_cameras: Share = 0.0
    precision: Literal["no", "fp16", "bf16"] = "no"
    checkpoint_every: Positive = 500  # steps


class Config(Section):
    name: str
    seed: int = 0
    grid: Grid = Grid()
    data: Data = Data()
    model: Model = Model()
    modules: tuple[Module, ...] = Field(default=(), strict=False)
    fusions: tuple[str, ...] = Field(default=(), strict=False)  # such as fuse(rain, night): attention over modules
    routing: Annotated[LearnedRouting | ClassifierRouting, Field(discriminator="kind")] | None = None  # None: fixed
    recognise: bool = False  # weather, light and city, for the scene to believe in and route by where there are no tags
    train: Train = Train()


def parse_config(content: Any, source: str) -> Config:
    """Config of a parsed YAML or JSON document; InputError names the key that is wrong."""
    return parse_section(Config, content, source)


def load_config(path: Path) -> Config:
    """Read a configuration file.

    Raises:
        InputError: the file is absent, is not YAML, or has an unknown or wrong-typed key.
    """
    return load_section(Config, path, "the configuration")


def find_config(name: str) -> Path:
    """The configuration of this name among those that come with the package, such as `tiny`."""
    here = Path(__file__).parent
    folders = (here / "configs", here.parent / "configs")  # an installed package; a checkout of the repository
    return next(folder / f"{name}.yaml" for folder in folders if (folder / f"{name}.yaml").exists())
