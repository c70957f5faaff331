"""Seconds per training step of each way to adapt."""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from evidence_models import Models
from evidence_plan import STEPS, WAYS

from perception.training import trainable
from perception.training.loader import FrameDataset, collate
from perception.training.optimize import optimizer_of


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--evidence", type=Path, default=Path("runs/evidence"), help="folder of tools/evidence.py")
    command.add_argument("--rounds", type=int, default=15)
    command.set_defaults(run=adapt)


def adapt(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds per training step of each way to adapt, on the evidence's base and rainy drives.

    A step takes two frames from memory, augments and prepares them, and runs forward, backward, clipping and optimizer.
    The first two rounds are discarded.
    """
    evidence = Models(arguments.evidence)
    models = {way: evidence.prepared(0, "rain", way) for way in WAYS}
    for model in models.values():
        model.to(memory_format=torch.channels_last)  # like the training loop
    optimizers = {way: optimizer_of(model, 1e-4, 0.01) for way, model in models.items()}
    dataset = FrameDataset(evidence.tables, evidence.tokens("sim_train", "rain"), evidence.config(0, steps=STEPS))
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    loading: list[float] = []
    for sample in range(2):
        dataset[sample]
    for _ in range(arguments.rounds + 2):
        for way, model in models.items():
            start = time.perf_counter()
            batch = collate([dataset[0], dataset[1]])
            loading.append(time.perf_counter() - start)
            with torch.autocast("cpu", torch.bfloat16):
                dense = model(batch.inputs, batch.conditions)
            terms = model.losses({k: v.float() for k, v in dense.items()}, batch.labels)
            torch.stack([term.mean() for term in terms.values()]).sum().backward()
            torch.nn.utils.clip_grad_norm_([p for _, p in trainable.parameters(model)], 35.0)
            optimizers[way].step()
            optimizers[way].zero_grad()
            seconds[way].append(time.perf_counter() - start)
    medians = {way: statistics.median(values[2:]) for way, values in seconds.items()}
    return {
        "seconds_per_step": medians,
        "ratio_to_full": {way: value / medians["full fine-tune"] for way, value in medians.items()},
        "of_which_loading": statistics.median(loading),
        "rounds": arguments.rounds,
        "threads": torch.get_num_threads(),
    }
