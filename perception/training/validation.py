"""Evaluation during a training, on keyframes that it does not see."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console

from perception.datasets.keyframes import Keyframes
from perception.errors import InputError
from perception.evaluation.evaluate import evaluate
from perception.evaluation.slices import numbers
from perception.model import PerceptionModel
from perception.predict import TorchPredictor
from perception.recipe import Validation


class Validator:
    """Scores models as `perception evaluate` does, without changing the random state; files go to RUN/validation.

    Raises:
        InputError: an unknown split or scene.
    """

    def __init__(self, settings: Validation, tables: Keyframes, run: Path) -> None:
        self.settings, self.tables, self.folder = settings, tables, run / "validation"
        self.tokens = tables.samples(settings.split, settings.scenes)

    def check(self, model: PerceptionModel) -> None:
        """Evaluate the first keyframe, to find mistakes before the training.

        Raises:
            InputError: the metric is no number among the scores, or the evaluation fails.
        """
        first = self.tokens[0]
        self._scores(model, (f"{self.tables.scene(first)}:0-1",))

    def scores(self, model: PerceptionModel) -> tuple[float, dict[str, float]]:
        """The score that the best checkpoint is chosen by, and all numbers; puts the model into evaluation mode.

        Raises:
            InputError: the metric is no number among the scores, or the evaluation fails.
        """
        return self._scores(model, self.settings.scenes)

    def _scores(self, model: PerceptionModel, scenes: tuple[str, ...]) -> tuple[float, dict[str, float]]:
        predictor = TorchPredictor(model, self.settings.batch)
        with torch.random.fork_rng(devices=[]):
            found = evaluate(
                predictor, self.tables, self.settings.split, scenes, self.folder, predictor.spec, Console(quiet=True)
            )
        values = {name: float(value) for name, value in numbers(found).items() if isinstance(value, int | float)}
        metric = self.settings.metric
        if metric not in values:
            raise InputError(f"train.validation.metric: {metric} is none of the scores {', '.join(sorted(values))}")
        return values[metric], values
