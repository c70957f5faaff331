"""The training loop: one process or, through `accelerate launch`, several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, set_seed
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.tensorboard import SummaryWriter

from perception.config import Config, LearnedRouting
from perception.datasets.keyframes import Keyframes
from perception.errors import InputError
from perception.model import PerceptionModel
from perception.tasks.detection.anchor_losses import anchor_losses
from perception.tasks.detection.center_head import joined
from perception.tasks.detection.losses import detection_losses, map_losses
from perception.tasks.detection.targets import detection_targets
from perception.training import checkpoint, settings
from perception.training.loader import Batch, FrameDataset, batches


def losses_of(config: Config, dense: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
    """Named loss terms of all heads for one batch; their sum is minimised."""
    head = config.model.detection
    device = next(iter(dense.values())).device
    if config.model.anchors:
        losses = anchor_losses(config.model.anchors, config.grid, dense, batch.boxes)
    else:
        grid = config.grid.build().coarser(config.model.trunk.stride)
        targets = detection_targets(batch.boxes, grid, head)
        losses = detection_losses(joined(head, dense), targets.to(device))
    if config.model.map and batch.map_labels is not None:
        losses |= map_losses(dense, batch.map_labels.to(device), batch.map_valid.to(device))
    return losses


@torch.no_grad()
def costs_of(config: Config, dense: dict[str, Tensor], batch: Batch) -> Tensor:
    """(B,): what the tasks lose on each frame alone."""
    costs = []
    for i in range(len(batch.boxes)):
        labels = None if batch.map_labels is None else batch.map_labels[i : i + 1]
        frame = replace(batch, boxes=batch.boxes[i : i + 1], map_labels=labels, map_valid=batch.map_valid[i : i + 1])
        losses = losses_of(config, {name: value[i : i + 1] for name, value in dense.items()}, frame)
        costs.append(torch.stack(list(losses.values())).sum())
    return torch.stack(costs)


def train(config: Config, tables: Keyframes, split: str | None, run: Path, resume: bool = False) -> Path:
    """Train base and modules jointly on the split's frames; returns the last checkpoint's folder.

    Writes and raises as `fit` does.
    """
    set_seed(config.seed)
    model = PerceptionModel(config)
    settings.joint(model)
    return fit(model, tables, tables.samples(split, config.data.scenes), run, resume)


def fit(
    model: PerceptionModel,
    tables: Keyframes,
    tokens: Sequence[str],
    run: Path,
    resume: bool = False,
    earlier: Sequence[str] = (),
) -> Path:
    """Train what the training setting left unfrozen, on these keyframes; returns the last checkpoint's folder.

    Writes RUN/checkpoints/step-* and RUN/tensorboard. With `resume` it goes on from the newest checkpoint and, on a
    CPU, ends with the bytes that an uninterrupted run ends with.

    Args:
        earlier: what the model was trained on before, as `checkpoint.provenance` tells it.

    Raises:
        InputError: no frames, a checkpoint that does not fit, RUN already trained, fp16 without a GPU, or a full disk.
    """
    if not resume and checkpoint.newest(run) is not None:
        raise InputError(f"{run}: holds a trained run already; add --resume to go on with it, or choose another --out")
    config, options = model.config, model.config.train
    if options.precision == "fp16" and not torch.cuda.is_available():
        raise InputError(f"{config.name}: train.precision fp16 needs a GPU; use bf16 or no")
    accelerator = Accelerator(
        mixed_precision=options.precision,
        cpu=not torch.cuda.is_available(),
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=bool(config.modules or config.routing))],
    )
    set_seed(config.seed)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a tenth faster
    optimizer = settings.optimizer_of(model, options.learning_rate, options.weight_decay)
    schedule = OneCycleLR(optimizer, options.learning_rate, total_steps=options.steps + 1)
    first = 0
    if resume:
        first, state = checkpoint.resume(run, config, model, optimizer)
        schedule.load_state_dict(state["rate"])
        if accelerator.scaler is not None and state["scaler"]:
            accelerator.scaler.load_state_dict(state["scaler"])
    dataset = FrameDataset(tables, tokens, config)
    parallel, optimizer = accelerator.prepare(model, optimizer)
    reinforced = isinstance(config.routing, LearnedRouting) and config.routing.choose == "reinforce"

    def save(step: int) -> Path:
        scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else {}
        state = {"rate": schedule.state_dict(), "scaler": scaler}
        return checkpoint.save(run, step, config, model, optimizer, state, (*earlier, _described(tables, tokens)))

    writer = SummaryWriter(str(run / "tensorboard")) if accelerator.is_main_process else None
    with _progress(accelerator.is_main_process) as progress:
        bar = progress.add_task("training", total=options.steps, completed=first, losses="")
        share = (accelerator.process_index, accelerator.num_processes)
        for step, batch in enumerate(batches(dataset, config, first, *share), first + 1):
            inputs = {name: value.to(accelerator.device) for name, value in batch.inputs.items()}
            dense = parallel(inputs, batch.conditions)
            costs = costs_of(config, dense, batch) if reinforced else None
            losses = {
                **losses_of(config, dense, batch),
                **model.routing_losses(costs),
                **model.recognition_losses(dense, batch.conditions),
            }
            loss = torch.stack(list(losses.values())).sum()
            if not torch.isfinite(loss):
                raise InputError(f"{run}: the loss at step {step} is {loss.item()}; lower train.learning_rate")
            accelerator.backward(loss)
            norm = float(accelerator.clip_grad_norm_(parallel.parameters(), options.gradient_clip))
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()

            values = {name: value.item() for name, value in losses.items()}
            progress.update(bar, completed=step, losses=" ".join(f"{k} {v:.2f}" for k, v in values.items()))
            if writer is not None:
                _log(
                    writer,
                    step,
                    {**values, **model.routing_balance(), "norm": norm, "learning_rate": schedule.get_last_lr()[0]},
                )
                if step % options.checkpoint_every == 0 and step < options.steps:
                    save(step)
    last = run / "checkpoints" / f"step-{options.steps:06d}"
    if writer is not None:
        last = save(options.steps)
        writer.close()
    accelerator.wait_for_everyone()
    return last


def _described(tables: Keyframes, tokens: Sequence[str]) -> str:
    """The keyframes of a training in words."""
    return f"{tables.version}: {len(tokens)} keyframes of {len({*map(tables.scene, tokens)})} scenes"


def _log(writer: SummaryWriter, step: int, values: dict[str, Any]) -> None:
    for name, value in values.items():
        writer.add_scalar(f"train/{name}", value, step)


def _progress(shown: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[losses]}"), disable=not shown,
    )  # fmt: skip
