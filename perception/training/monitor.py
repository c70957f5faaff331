"""Evaluations during a training, on keyframes that it does not see."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console

from perception.config import Validation
from perception.datasets.keyframes import Keyframes
from perception.errors import InputError
from perception.evaluation.evaluate import evaluate
from perception.model import PerceptionModel
from perception.predict import TorchPredictor


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
