"""The training loop: one process or, through `accelerate launch`, several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, set_seed
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.tensorboard import SummaryWriter

from perception.config import Config
from perception.data.loader import Batch, FrameDataset, batches
from perception.data.nuscenes import NuScenesTables
from perception.errors import InputError
from perception.model import PerceptionModel
from perception.training import checkpoint
from perception.training.losses import detection_losses, map_losses
from perception.training.targets import detection_targets


def losses_of(config: Config, dense: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
    """Named loss terms of all heads for one batch; their sum is minimised."""
    device = dense["heatmap"].device
    grid = config.grid.build().coarser(config.model.trunk.stride)
    targets = detection_targets(batch.boxes, grid, config.model.detection.min_radius)
    losses = detection_losses(dense, targets.to(device))
    if config.model.map and batch.map_labels is not None:
        losses |= map_losses(dense, batch.map_labels.to(device), batch.map_valid.to(device))
    return losses


def train(config: Config, tables: NuScenesTables, split: str | None, run: Path, resume: bool = False) -> Path:
    """Train on the split's frames and return the last checkpoint's folder.

    Writes RUN/checkpoints/step-* and RUN/tensorboard. With `resume` it goes on from the newest checkpoint and, on a
    CPU, ends with the bytes that an uninterrupted run ends with.

    Raises:
        InputError: no frames, a checkpoint that does not fit, RUN already trained, fp16 without a GPU, or a full disk.
    """
    if not resume and checkpoint.newest(run) is not None:
        raise InputError(f"{run}: holds a trained run already; add --resume to go on with it, or choose another --out")
    settings = config.train
    if settings.precision == "fp16" and not torch.cuda.is_available():
        raise InputError(f"{config.name}: train.precision fp16 needs a GPU; use bf16 or no")
    accelerator = Accelerator(
        mixed_precision=settings.precision,
        cpu=not torch.cuda.is_available(),
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=bool(config.modules))],
    )
    set_seed(config.seed)
    model = PerceptionModel(config)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a tenth faster
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, foreach=True
    )
    schedule = OneCycleLR(optimizer, settings.learning_rate, total_steps=settings.steps + 1)
    first = 0
    if resume:
        first, state = checkpoint.resume(run, config, model, optimizer)
        schedule.load_state_dict(state["rate"])
        if accelerator.scaler is not None and state["scaler"]:
            accelerator.scaler.load_state_dict(state["scaler"])
    dataset = FrameDataset(tables, tables.samples(split, config.data.scenes), config)
    parallel, optimizer = accelerator.prepare(model, optimizer)
    parallel.train()

    def save(step: int) -> Path:
        scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else {}
        state = {"rate": schedule.state_dict(), "scaler": scaler}
        return checkpoint.save(run, step, config, model, optimizer, state)

    writer = SummaryWriter(str(run / "tensorboard")) if accelerator.is_main_process else None
    with _progress(accelerator.is_main_process) as progress:
        bar = progress.add_task("training", total=settings.steps, completed=first, losses="")
        share = (accelerator.process_index, accelerator.num_processes)
        for step, batch in enumerate(batches(dataset, config, first, *share), first + 1):
            inputs = {name: value.to(accelerator.device) for name, value in batch.inputs.items()}
            losses = losses_of(config, parallel(inputs, batch.conditions), batch)
            loss = torch.stack(list(losses.values())).sum()
            if not torch.isfinite(loss):
                raise InputError(f"{run}: the loss at step {step} is {loss.item()}; lower train.learning_rate")
            accelerator.backward(loss)
            norm = accelerator.clip_grad_norm_(parallel.parameters(), settings.gradient_clip)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()

            values = {name: value.item() for name, value in losses.items()}
            progress.update(bar, completed=step, losses=" ".join(f"{k} {v:.2f}" for k, v in values.items()))
            if writer is not None:
                _log(writer, step, values | {"norm": float(norm), "learning_rate": schedule.get_last_lr()[0]})
                if step % settings.checkpoint_every == 0 and step < settings.steps:
                    save(step)
    last = run / "checkpoints" / f"step-{settings.steps:06d}"
    if writer is not None:
        last = save(settings.steps)
        writer.close()
    accelerator.wait_for_everyone()
    return last


def _log(writer: SummaryWriter, step: int, values: dict[str, Any]) -> None:
    for name, value in values.items():
        writer.add_scalar(f"train/{name}", value, step)


def _progress(shown: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[losses]}"), disable=not shown,
    )  # fmt: skip
