"""The training loop: one process or, through `accelerate launch`, several."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, set_seed
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.tensorboard import SummaryWriter

from perception.config import Config
from perception.datasets.keyframes import Keyframes
from perception.errors import InputError
from perception.model import PerceptionModel
from perception.training import checkpoint, trainable
from perception.training.loader import Batch, FrameDataset, batches


def train(config: Config, tables: Keyframes, split: str | None, run: Path, resume: bool = False) -> Path:
    """Train base and modules jointly on the frames of the split; otherwise as `fit`."""
    set_seed(config.seed)
    model = PerceptionModel(config)
    if config.model.camera is not None and not resume:
        model.camera.load_pretrained()
    trainable.joint(model)
    return fit(model, tables, tables.samples(split, config.data.scenes), run, resume)


def fit(
    model: PerceptionModel,
    tables: Keyframes,
    tokens: Sequence[str],
    run: Path,
    resume: bool = False,
    earlier: Sequence[str] = (),
) -> Path:
    """Train the unfrozen parameters on these keyframes; returns the folder of the last checkpoint.

    Writes RUN/checkpoints/step-* and RUN/tensorboard.

    Args:
        resume: go on from the newest checkpoint; on a CPU the result is bit-identical to that of an uninterrupted run.
        earlier: descriptions of earlier trainings of the model, see `checkpoint.provenance`.

    Raises:
        InputError: no frames, a checkpoint that does not fit, RUN already trained, fp16 without a GPU, or a full disk.
    """
    _require_possible(model.config, run, resume)
    training = _Training(model, tables, tokens, run, earlier)
    first = training.resume() if resume else 0
    with training.shown(first) as show:
        for step, batch in enumerate(training.batches(first), first + 1):
            values = training.step(step, batch)
            show(step, values)
            if step % model.config.train.checkpoint_every == 0 and step < model.config.train.steps:
                training.save(step)
    return training.finish()


class _Training:
    """The state of a training; arguments as in `fit`."""

    def __init__(
        self, model: PerceptionModel, tables: Keyframes, tokens: Sequence[str], run: Path, earlier: Sequence[str]
    ) -> None:
        self.model, self.run, self.config = model, run, model.config
        options = self.config.train
        self.data = (*earlier, described(tables, tokens))
        unused = bool(self.config.modules or self.config.routing)
        self.accelerator = Accelerator(
            mixed_precision=options.precision,
            cpu=not torch.cuda.is_available(),
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=unused)],
        )
        set_seed(self.config.seed)
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a tenth faster
        optimizer = trainable.optimizer_of(model, options.learning_rate, options.weight_decay)
        self.schedule = OneCycleLR(optimizer, options.learning_rate, total_steps=options.steps + 1)
        self.dataset = FrameDataset(tables, tokens, self.config, model.computed, model.depth_cells())
        self.parallel, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.main = self.accelerator.is_main_process

    def resume(self) -> int:
        """Go on from the newest checkpoint; returns its step."""
        step, state = checkpoint.resume(self.run, self.config, self.model, self.optimizer)
        self.schedule.load_state_dict(state["rate"])
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        return step

    def batches(self, first: int) -> Iterator[Batch]:
        """This process's batches of the steps after `first`."""
        share = (self.accelerator.process_index, self.accelerator.num_processes)
        return batches(self.dataset, self.config, first, *share)

    def step(self, step: int, batch: Batch) -> dict[str, float]:
        """One step of the optimizer; returns the loss terms and other scalars to log."""
        device = self.accelerator.device
        inputs = {name: value.to(device) for name, value in batch.inputs.items()}
        terms = self.model.losses(self.parallel(inputs, batch.conditions), batch.labels_on(device))
        of_tasks = [term.each() for name, term in terms.items() if name.split("/")[0] in self.model.tasks]
        costs = torch.stack(of_tasks).sum(dim=0).detach()
        losses = {name: term.mean() for name, term in terms.items()} | self.model.routing_losses(costs)
        loss = torch.stack(list(losses.values())).sum()
        if not torch.isfinite(loss):
            raise InputError(f"{self.run}: the loss at step {step} is {loss.item()}; lower train.learning_rate")
        self.accelerator.backward(loss)
        norm = float(self.accelerator.clip_grad_norm_(self.parallel.parameters(), self.config.train.gradient_clip))
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        values = {name: value.item() for name, value in losses.items()} | self.model.routing_balance()
        return values | {"norm": norm, "learning_rate": float(self.schedule.get_last_lr()[0])}

    @contextmanager
    def shown(self, first: int) -> Iterator[Callable[[int, dict[str, float]], None]]:
        """A function that logs the values of a step to a progress bar and RUN/tensorboard; main process only."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with ExitStack() as stack:
            losses = TextColumn("{task.fields[losses]}")
            progress = stack.enter_context(Progress(*columns, losses, disable=not self.main))
            bar = progress.add_task("training", total=self.config.train.steps, completed=first, losses="")
            writer = stack.enter_context(SummaryWriter(str(self.run / "tensorboard"))) if self.main else None

            def show(step: int, values: dict[str, float]) -> None:
                terms = {name: value for name, value in values.items() if "/" in name}
                progress.update(bar, completed=step, losses=" ".join(f"{k} {v:.2f}" for k, v in terms.items()))
                if writer is not None:
                    for name, value in values.items():
                        writer.add_scalar(f"train/{name}", value, step)

            yield show

    def save(self, step: int) -> None:
        """Write RUN/checkpoints/step-*; main process only."""
        if self.main:
            scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else {}
            state = {"rate": self.schedule.state_dict(), "scaler": scaler}
            checkpoint.save(self.run, step, self.config, self.model, self.optimizer, state, self.data)

    def finish(self) -> Path:
        """Write the last checkpoint and wait for all processes; returns its folder."""
        self.save(self.config.train.steps)
        self.accelerator.wait_for_everyone()
        return self.run / "checkpoints" / f"step-{self.config.train.steps:06d}"


def _require_possible(config: Config, run: Path, resume: bool) -> None:
    if not resume and checkpoint.newest(run) is not None:
        raise InputError(f"{run}: holds a trained run already; add --resume to go on with it, or choose another --out")
    if config.train.precision == "fp16" and not torch.cuda.is_available():
        raise InputError(f"{config.name}: train.precision fp16 needs a GPU; use bf16 or no")


def described(tables: Keyframes, tokens: Sequence[str]) -> str:
    """Description of the keyframes of a training, such as `v1.0-mini: 323 keyframes of 8 scenes`."""
    return f"{tables.version}: {len(tokens)} keyframes of {len({*map(tables.scene, tokens)})} scenes"
