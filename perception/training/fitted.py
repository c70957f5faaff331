"""Fits the head of an added task that needs no gradients: one pass over the keyframes, without augmentation."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from perception.datasets.keyframes import Keyframes, Reads
from perception.errors import InputError
from perception.model import PerceptionModel
from perception.sensors.inputs import InputSpec, prepare
from perception.training.checkpoint import save_model
from perception.training.loader import batch_inputs, batch_labels
from perception.training.loop import described


def fit_head(
    model: PerceptionModel,
    task: str,
    tables: Keyframes,
    tokens: Sequence[str],
    run: Path,
    earlier: Sequence[str] = (),
) -> Path:
    """Fit the head of a task to these keyframes, and write the model to RUN/checkpoints; returns the new checkpoint.

    Args:
        earlier: descriptions of earlier trainings of the model, see `checkpoint.provenance`.

    Raises:
        InputError: pretrained weights are not installed, the keyframes are too few, the disk is full, or there are
            several processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # of torchrun
        raise InputError(
            f"{task}: this head is fitted in one process; start perception adapt without accelerate launch"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    head: Any = model.head(task)
    head.start()
    head.to(device)
    spec, arrays = InputSpec.of(model.config), None
    for token in track(tokens, "keyframes", console=Console(stderr=True)):
        frame = tables.frame(token, Reads(spec.grid.reference, lidar=False))
        arrays = prepare(frame, spec, into=arrays)
        inputs = {name: value.to(device) for name, value in batch_inputs([arrays]).items()}
        labels = batch_labels([{task: model.tasks[task].labels(frame, tables)}])[task]
        head.observe(inputs, labels, tables.scene(token))
    head.fit()
    model.to("cpu").requires_grad_(False).eval()
    last = run / "checkpoints" / "step-000000"
    save_model(last, model.config, model, (*earlier, described(tables, tokens)))
    return last
