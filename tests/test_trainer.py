"""The trainer: what it logs and refuses, the recipe's values, and what does not change the training."""

from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_training import small

from perception.errors import InputError
from perception.training.log import TrainingLog
from perception.training.loop import train


def test_the_log_has_means_of_intervals_and_names_the_first_loss_that_is_not_finite(tmp_path: Path) -> None:
    losses = [4.0, 2.0, 1.0, float("nan"), float("inf")]
    with TrainingLog(tmp_path, 0, 5, True) as log:
        for step, value in enumerate(losses, 1):
            log.add(step, {"map/cells": torch.tensor(value), "loss": torch.tensor(2 * value)})
            if step in (2, 3):
                log.write({"learning_rate": 0.5 / step})
        with pytest.raises(InputError, match=r"the loss at step 4 is nan; lower train.learning_rate"):
            log.write({})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/map/cells")] == [(2, 3.0), (3, 1.0)]
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(2, 6.0), (3, 2.0)]
    assert [e.value for e in events.Scalars("train/learning_rate")] == pytest.approx([0.25, 0.5 / 3])


def test_weights_that_are_not_finite_are_not_written(tables, tmp_path: Path) -> None:
    config = small(steps=1, learning_rate=3.75e38, weight_decay=20.0)  # the loss before the step is finite
    with pytest.raises(InputError, match=r"after step 1 the weights \S+ are not finite; lower train.learning_rate"):
        train(config, tables, "all", tmp_path)
    assert not list(tmp_path.glob("checkpoints/*"))
