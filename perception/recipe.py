"""The recipe of a training: length, batch, schedule, averaging, validation, and the weights that it starts from."""

from __future__ import annotations

from fractions import Fraction
from math import ceil
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from perception.section import Positive, Section, Share

Factor = Annotated[float, Field(gt=0)]


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
    def _milestones(self) -> Schedule:
        if bool(self.milestones) != (self.kind == "step"):
            raise ValueError("`milestones` are for the kind `step`, which needs them")
        return self


class Validation(Section):
    """Evaluation during the training; the checkpoint with the highest score is kept as RUN/checkpoints/best."""

    every: Positive = 1  # and after the last step
    unit: Literal["epochs", "steps"] = "epochs"  # of `every`
    split: str  # such as val; all: every scene
    scenes: tuple[str, ...] = Field(default=(), strict=False)  # of the split, as in `data.scenes`
    metric: str = "NDS"  # a number in metrics.json of `perception evaluate`; higher is better
    batch: Positive = 4  # frames in a forward pass


class InitFrom(Section):
    """Weights of an earlier run to start from."""

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
    )  # glob of parameters -> factor of their rate; the first that matches counts
    weight_decay: float = 0.01
    gradient_clip: float = 35.0  # maximum norm
    norm_momentum: Share | None = None  # of batch normalisations; None: the layers' own
    sync_norm: bool = False  # batch statistics over all processes
    shard: bool = False  # parameters, gradients and moments are divided among the processes
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None  # decay a step of the average of the weights
    drop_lidar: Share = 0.0  # share of training frames without LiDAR
    drop_cameras: Share = 0.0
    precision: Literal["no", "fp16", "bf16"] = "no"
    checkpoint_every: Positive = 500  # steps
    log_every: Positive = 50  # steps; losses are fetched from the device and checked this often
    validation: Validation | None = None

    @model_validator(mode="before")
    @classmethod
    def _epochs_alone(cls, content: Any) -> Any:
        if isinstance(content, dict) and content.get("epochs") is not None and "steps" not in content:
            return {**content, "steps": None}
        return content

    @model_validator(mode="after")
    def _one_length(self) -> Train:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give `steps` or `epochs`, one of them")
        return self

    @property
    def peak(self) -> float:
        """The peak learning rate for the batch, linear in it (Goyal et al., "Accurate, large minibatch SGD", 2017)."""
        return self.learning_rate * self.batch / (self.base_batch or self.batch)

    def total_steps(self, epoch: int) -> int:
        """Number of steps of the training.

        Args:
            epoch: number of samples in an epoch.
        """
        return self.steps if self.steps is not None else ceil(Fraction((self.epochs or 0) * epoch, self.batch))

    def validation_period(self, epoch: int) -> int:
        """Number of samples between validations.

        Args:
            epoch: number of samples in an epoch.
        """
        assert self.validation is not None
        return self.validation.every * (epoch if self.validation.unit == "epochs" else self.batch)
