"""What a training shows while it runs: progress bar, TensorBoard, and evaluations on keyframes that it does not see.

Losses stay on the device and are fetched once per interval.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from perception.config import Validation
from perception.datasets.keyframes import Keyframes
from perception.errors import InputError
from perception.evaluation.evaluate import evaluate
from perception.io import distributed
from perception.model import PerceptionModel
from perception.predict import TorchPredictor


class TrainingLog:
    """Logs to a progress bar and RUN/tensorboard while it is entered as a context.

    Args:
        first: number of steps done before.
        main: whether this is the main process; others log nothing, and find losses that are not finite all the same.
            All call `write` after the same steps.
    """

    def __init__(self, run: Path, first: int, steps: int, main: bool) -> None:
        self.run, self.first, self.steps, self.main = run, first, steps, main
        self._pending: list[tuple[int, dict[str, Tensor]]] = []
        self._files = ExitStack()

    def __enter__(self) -> TrainingLog:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        losses = TextColumn("{task.fields[losses]}")
        shown = Progress(*columns, losses, console=Console(stderr=True), disable=not self.main)
        self._progress = self._files.enter_context(shown)
        self._bar = self._progress.add_task("training", total=self.steps, completed=self.first, losses="")
        folder = str(self.run / "tensorboard")
        self._writer = self._files.enter_context(SummaryWriter(folder)) if self.main else None
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def add(self, step: int, values: dict[str, Tensor]) -> None:
        """Keep the values of a step, () each, on their device until `write`; the total is called `loss`."""
        self._pending.append((step, values))
        self._progress.update(self._bar, completed=step)

    def write(self, others: Mapping[str, float]) -> None:
        """Log the means of the values since the last call over all processes, and other scalars of the last step."""
        if not self._pending:
            return
        steps = self._fetch()
        for step, values in steps:
            if not math.isfinite(values["loss"]):
                message = f"{self.run}: the loss at step {step} is {values['loss']}; lower train.learning_rate"
                raise InputError(message)
        found: dict[str, list[float]] = {}
        for _, values in steps:
            for name, value in values.items():
                found.setdefault(name, []).append(value)
        means = {name: sum(values) / len(values) for name, values in found.items()}
        shown = " ".join(f"{name} {value:.2f}" for name, value in means.items() if "/" in name)
        self._progress.update(self._bar, losses=shown)
        self.scalars(steps[-1][0], "train", {**means, **others})

    def scalars(self, step: int, group: str, values: Mapping[str, float]) -> None:
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(f"{group}/{name}", value, step)

    def _fetch(self) -> list[tuple[int, dict[str, float]]]:
        pending, self._pending = self._pending, []
        own = torch.stack([value.float() for _, values in pending for value in values.values()])
        numbers = iter(distributed.mean(own).tolist())
        return [(step, {name: next(numbers) for name in values}) for step, values in pending]


class Validator:
    """Scores models as `perception evaluate` does, without changing the random state; files go to RUN/validation."""

    def __init__(self, settings: Validation, tables: Keyframes, run: Path) -> None:
        self.settings, self.tables, self.folder = settings, tables, run / "validation"
        self.tokens = tables.samples(settings.split, settings.scenes)

    def check(self, model: PerceptionModel) -> None:
        """Evaluate the first keyframe, to find mistakes before the training."""
        with TemporaryDirectory() as folder:  # RUN/validation keeps what a training that is resumed wrote there
            found = self._evaluate(model, (f"{self.tables.scene(self.tokens[0])}:0-1",), Path(folder))
        metric = self.settings.metric
        # What one keyframe leaves undefined may be a number of all of them.
        undefined = any(value is None and f"{metric}.".startswith(f"{name}.") for name, value in found.items())
        if metric not in found and not undefined:
            raise self._unknown(found)

    def scores(self, model: PerceptionModel) -> tuple[float, dict[str, float]]:
        """The score that the best checkpoint is chosen by, and all numbers; puts the model into evaluation mode."""
        found = self._evaluate(model, self.settings.scenes, self.folder)
        values = {name: float(value) for name, value in found.items() if value is not None}
        if self.settings.metric not in values:
            raise self._unknown(values)
        return values[self.settings.metric], values

    def _evaluate(self, model: PerceptionModel, scenes: Sequence[str], folder: Path) -> dict[str, float | None]:
        predictor = TorchPredictor(model, self.settings.batch)
        with torch.random.fork_rng(devices=[]):
            quiet = Console(quiet=True)
            found = evaluate(predictor, self.tables, self.settings.split, scenes, folder, predictor.spec, quiet)
        return dict(_by_path(found))

    def _unknown(self, names: Iterable[str]) -> InputError:
        """An error with their names; nested ones, of which there are hundreds, by the first of their keys."""
        short = {name if "." not in name else f"{name.split('.')[0]}.*" for name in names}
        there = ", ".join(sorted(short, key=lambda name: (name.endswith("*"), name)))
        return InputError(f"train.validation.metric: {self.settings.metric} is none of the scores {there}")


def _by_path(scores: Mapping[Any, Any], path: str = "") -> Iterator[tuple[str, float | None]]:
    """The numbers of metrics.json by their keys, joined by dots; None where they are undefined."""
    for key, value in scores.items():
        if isinstance(value, Mapping):
            yield from _by_path(value, f"{path}{key}.")
        elif value is None or isinstance(value, int | float):
            yield f"{path}{key}", value
