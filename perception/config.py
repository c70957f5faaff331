"""Typed configuration: one YAML file for grid, data, model and training. Unknown keys are errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from perception.errors import InputError, suggestion
from perception.grid import BevGrid
from perception.io.section import (
    Contents,
    Positive,
    Range,
    Section,
    Share,
    Weight,
    overridden,
    parse_section,
    read_yaml,
)
from perception.io.shipped import shipped_folder
from perception.modules.memories import limits_of
from perception.modules.spec import AnyModule, LearnedRouting, require_facts
from perception.parts import Grid, Model
from perception.rig import Rig, read_named_rig
from perception.sensors import sensor_facts
from perception.sensors.inputs import InputSpec
from perception.tasks import TASKS, TaskConfigs, counted_truth, point_places
from perception.taxonomy import Taxonomy, read_named_taxonomy


class Schedule(Section):
    """Learning rate over the training, as a share of its peak.

    one_cycle: rises and falls as half cosines, while Adam's first beta falls to 0.85 and rises to 0.95 (Smith and
    Topin, 2018). cosine and step: rise linearly; then a half cosine, or a division by 10 at each of `milestones`.
    """

    kind: Literal["one_cycle", "cosine", "step"] = "one_cycle"  # course of the rate
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
    steps: Positive | None = 1000  # None: as many as `epochs` need
    epochs: Positive | None = None  # an epoch of class-balanced sampling is longer than one pass over the keyframes
    batch: Positive = 4  # frames of a step, over all processes and passes
    accumulate: Positive = 1  # forward passes of a step on each process
    learning_rate: float = 2e-3  # peak of the schedule, for `base_batch`
    base_batch: Positive | None = None  # that `learning_rate` is for, in proportion to the batch; None: `batch`
    schedule: Schedule = Schedule()
    # Glob of parameters -> factor of their rate, 0: they are frozen; the first that matches counts.
    rates: dict[str, Weight] = Field(default={})
    weight_decay: float = 0.01  # of AdamW
    gradient_clip: float = 35.0  # maximum norm
    norm_momentum: Share | None = None  # of batch normalisations; None: the layers' own; 0: they use their statistics
    sync_norm: bool = False  # batch statistics over all GPUs
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None  # decay a step of the average of the weights
    drop: dict[str, Share] = Field(default={})  # kind of sensor (`lidar`, `cameras`) -> share of frames without it
    # Of the forward pass; bf16 and fp16 by automatic mixed precision. YAML reads `no` as false.
    precision: Annotated[Literal["no", "fp16", "bf16"], BeforeValidator(lambda x: "no" if x is False else x)] = "no"
    checkpoint_every: Positive = 500  # steps
    log_every: Positive = 50  # steps; losses are fetched from the device and checked this often
    validation: Validation | None = None
    # Besides log.csv. TensorBoard writes to RUN/tensorboard, the others as their environment variables say.
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = Field(default=("tensorboard",), strict=False)

    @model_validator(mode="before")
    @classmethod
    def _drop_default_steps(cls, content: Any) -> Any:
        if isinstance(content, dict) and content.get("epochs") is not None and "steps" not in content:
            return {**content, "steps": None}
        return content

    @model_validator(mode="before")
    @classmethod
    def _read_older_drops(cls, content: Any) -> Any:
        """`drop_lidar: 0.1` of older runs is `drop: {lidar: 0.1}`."""
        named = [key for key in content if isinstance(key, str)] if isinstance(content, dict) else []
        older = [key for key in named if key.startswith("drop_")]
        newer = content.get("drop", {}) if older else None
        if not older or not isinstance(newer, dict):
            return content
        shares = {key.removeprefix("drop_"): content[key] for key in older}
        rest = {key: value for key, value in content.items() if key not in older}
        return {**rest, "drop": newer | shares}

    @field_validator("drop")
    @classmethod
    def _require_sensors(cls, drop: dict[str, float]) -> dict[str, float]:
        for fact in drop:
            if fact not in sensor_facts():
                raise ValueError(f"{fact!r} is none of {', '.join(sensor_facts())}{suggestion(fact, sensor_facts())}")
        return drop

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


class Augment(Section):
    flip: bool = True  # flip the BEV left-right and front-back at random
    rotation: float = 0.39  # rad, maximum about z
    scale: float = 0.05  # maximum relative change
    translation: float | PerAxis = 0.5  # m, standard deviation of the shift; one number, or of x, y and z
    shuffle: bool = False  # shuffle the points, of which a full pillar keeps the first
    image_scale: float | Range = 0.06  # maximum relative change of the image's size; or the range of the factor
    image_rotation: float = 0.0  # degrees, maximum about the image's centre
    image_flip: bool = True  # mirror images at random
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
    # Of the split; empty: all. scene-0103:0-4 takes keyframes 0 to 3.
    scenes: tuple[str, ...] = Field(default=(), strict=False)
    workers: Annotated[int, Field(ge=0)] = 0  # processes that read frames; 0: the training's own
    class_balanced: bool = True  # draw frames with rare classes more often, as CBGS does
    cache: str | None = None  # folder where decoded frames are stored (training/frame_cache.py); None: nowhere
    reduced_pictures: bool = False  # decode JPEGs at 1/2, 1/4 or 1/8 of their size, at least as wide as the network's
    augment: Augment | None = Augment()  # random changes of each frame; None: none
    paste: Paste | None = None


class Config(Section):
    name: str  # of the network, in tables and reports
    seed: int = 0  # of initial weights, and of what the training draws
    # The name of one that comes with the package, a YAML file, or the taxonomy itself.
    taxonomy: Annotated[Taxonomy, BeforeValidator(read_named_taxonomy), Contents(lambda: str | Taxonomy)] = Field(
        default="nuscenes", validate_default=True
    )
    grid: Grid = Grid()  # cells of the bird's-eye view
    # The name of one that comes with the package, a YAML file, or the rig itself.
    rig: Annotated[Rig, BeforeValidator(read_named_rig), Contents(lambda: str | Rig)] = Field(
        default="nuscenes", validate_default=True
    )
    data: Data = Data()  # which frames are trained on, and how they are read and changed
    model: Model = Model()  # branches of the sensors, their fusion and the trunk
    # task -> options of its head; null leaves a task out
    tasks: TaskConfigs = Field(default={"detection": {}, "map": {}}, validate_default=True)
    modules: tuple[AnyModule, ...] = Field(default=(), strict=False)  # modules of the base, trained with it
    fusions: tuple[str, ...] = Field(default=(), strict=False)  # such as fuse(rain, night): attention over modules
    routing: LearnedRouting | None = None  # a network that chooses the modules; None: their `when` chooses
    init_from: InitFrom | None = None  # weights to begin with; None: random ones
    train: Train = Train()  # length, optimiser, validation and logs of the training

    @model_validator(mode="after")
    def _require_cameras(self) -> Config:
        if self.model.camera is not None and not self.rig.cameras:
            raise ValueError(f"model.camera: the rig {self.rig.name} has no camera")
        for kind in self.model.scanners:
            if kind not in self.rig.sensors.scanners.values():
                raise ValueError(f"model.scanners: the rig {self.rig.name} has no sensor of the kind {kind}")
        return self

    @model_validator(mode="after")
    def _require_pastable(self) -> Config:
        paste = self.data.paste
        for name in paste.classes if paste is not None else ():
            if name not in self.taxonomy.class_names:
                known = self.taxonomy.class_names
                near = suggestion(name, known)
                raise ValueError(
                    f"data.paste.classes: {name} is no class of the taxonomy; known are {', '.join(known)}{near}"
                )
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
        for fact in sensor_facts():
            if fact in self.taxonomy.condition_values:
                raise ValueError(f"taxonomy: conditions: {fact!r} stands for something else")
        for module in self.modules:
            try:
                require_facts(
                    module.when, self.taxonomy.condition_values, TASKS, sensor_facts(), f"modules.{module.name}.when"
                )
            except InputError as error:
                raise ValueError(str(error)) from None
        return self

    @property
    def head_grid(self) -> BevGrid:
        """The grid of the heads, at the trunk's stride."""
        return self.grid.build().coarser(self.model.trunk.stride)

    @property
    def spec(self) -> InputSpec:
        """The inputs of the network."""
        model, places, truth = self.model, point_places(self.tasks), counted_truth(self.tasks)
        return InputSpec(self.grid.build(), model.sensors, self.rig, places, truth, limits_of(self.modules))


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
    """Path of a file that comes with the package, such as nuscenes/fusion or tasks/points."""
    return shipped_folder() / f"{name}.yaml"
