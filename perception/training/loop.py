"""The training loop: one process or, through `accelerate launch`, several."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import cast

import torch
from accelerate.utils import set_seed
from timm.layers import convert_sync_batchnorm
from timm.utils import ModelEmaV3
from torch import Tensor

from perception import checkpoint
from perception.checkpoint import initialise
from perception.config import Config
from perception.datasets.keyframes import Keyframes
from perception.errors import InputError
from perception.model import PerceptionModel, Trace
from perception.modules.memories import limits_of, with_spacing
from perception.modules.route import Route
from perception.training import optimize
from perception.training.distribute import LongBarrier, accelerator_of, reduces_each_pass, report_lost_process
from perception.training.interrupt import InterruptRequest, Stopped
from perception.training.loader import Batch, FrameDataset, batches
from perception.training.log import TrainingLog, require_trackers
from perception.training.losses import Losses
from perception.training.monitor import Validator
from perception.training.objects import Objects, objects_of
from perception.training.optimize import (
    optimizer_of,
    resume_schedule,
    schedule_of,
    set_momentum,
    statistics_kept,
    trained_modules,
)


def train(config: Config, tables: Keyframes, split: str | None, run: Path, resume: bool = False) -> Path:
    """Train base and modules jointly on the frames of the split; otherwise as `fit`."""
    set_seed(config.seed)
    model = PerceptionModel(config)
    if not resume:
        model.load_pretrained()
    optimize.joint(model)
    optimize.freeze(model, config.train.rates)
    tokens, earlier = tables.samples(split, config.data.scenes), tuple[str, ...]()
    if resume:
        earlier = checkpoint.provenance(run).data[:-1]
    elif config.init_from is not None:
        initialise(model, config.init_from)
        earlier = checkpoint.provenance(Path(config.init_from.run)).data
    return fit(model, tables, tokens, run, resume, earlier)


def fit(
    model: PerceptionModel,
    tables: Keyframes,
    tokens: Sequence[str],
    run: Path,
    resume: bool = False,
    earlier: Sequence[str] = (),
    tasks: Sequence[str] | None = None,
) -> Path:
    """Train the unfrozen parameters on these keyframes; returns the folder of the last checkpoint.

    Ctrl-C saves the current step and raises `Stopped`.

    Writes RUN/checkpoints/step-*, RUN/log.csv and RUN/tensorboard; with `train.validation` also RUN/checkpoints/best
    and RUN/validation.

    Args:
        resume: continue from the newest checkpoint; on a CPU the result is bit-identical to that of an uninterrupted
            run. The configuration may differ in `checkpoint.CHANGEABLE`.
        earlier: descriptions of earlier trainings of the model, see `checkpoint.provenance`.
        tasks: whose outputs and losses are computed; None for all.
    """
    _require_possible(model.config, run, resume)
    with report_lost_process(run):
        training = _Training(model, tasks or tuple(model.tasks), tables, tokens, run, earlier)
        training.run_from(training.resume() if resume else 0)
        return training.finish()


class _Training:
    """The state of a training; arguments as in `fit`."""

    def __init__(
        self,
        model: PerceptionModel,
        tasks: Sequence[str],
        tables: Keyframes,
        tokens: Sequence[str],
        run: Path,
        earlier: Sequence[str],
    ) -> None:
        self.model, self.run, self.config = model, run, model.config
        options = self.config.train
        self.data = (*earlier, describe_keyframes(tables, tokens))
        self.keyframes = sha256("\n".join(tokens).encode()).hexdigest()
        self.accelerator = accelerator_of(model, tasks, tables, tokens)
        self.reduces_each_pass = reduces_each_pass(self.accelerator)
        self.barrier = LongBarrier()
        set_seed(self.config.seed)
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if options.norm_momentum is not None:
            set_momentum(model, options.norm_momentum)
        optimizer = optimizer_of(model, options.peak, options.weight_decay, options.rates)
        self.dataset = FrameDataset(
            tables,
            tokens,
            self.config,
            tasks,
            self._objects(tables, tokens, tasks),
            model.supervision(),
            trained_modules(model),
        )
        if self.dataset.spacing is not None:
            self.config = _record_spacing(model, self.dataset.spacing)
        self.steps = self.dataset.steps
        self.schedule = schedule_of(optimizer, options.schedule, self.steps)
        model.to(self.accelerator.device)
        # Copy before the normalisations are replaced: the main process evaluates alone.
        self.average = None if options.ema is None else ModelEmaV3(model, options.ema)
        self.validator = None if options.validation is None else Validator(options.validation, tables, run)
        self.validated = copy.deepcopy(model) if self.validator and self.average is None else None
        self.best = -math.inf  # score so far
        if options.sync_norm and self.accelerator.num_processes > 1 and self.accelerator.device.type == "cuda":
            convert_sync_batchnorm(model)
        self.parallel, self.optimizer = self.accelerator.prepare(Losses(model, tasks), optimizer)
        self.routes: list[Route] = []  # of the last pass
        self.main = self.accelerator.is_main_process

    def _objects(self, tables: Keyframes, tokens: Sequence[str], tasks: Sequence[str]) -> Objects | None:
        """The objects to paste, if configured and boxes are learned; one process builds the database.

        None are pasted into clips.
        """
        paste, boxes = self.config.data.paste, any(self.model.tasks[name].ranked for name in tasks)
        if paste is None or not boxes or limits_of(self.config.modules) is not None:
            return None
        folder = self.run / "objects" if paste.folder is None else Path(paste.folder)
        objects = objects_of(tables, tokens, self.config, folder) if self.accelerator.is_main_process else None
        self.barrier.wait()
        return objects_of(tables, tokens, self.config, folder) if objects is None else objects

    @property
    def averaged(self) -> PerceptionModel | None:
        return None if self.average is None else cast(PerceptionModel, self.average.module)

    def resume(self) -> int:
        """Go on from the newest checkpoint; returns its step."""
        step, state = checkpoint.resume(self.run, self.config, self.model, self.optimizer, self.averaged)
        if state.get("keyframes", self.keyframes) != self.keyframes:
            now = f"these ({self.data[-1]})"
            raise InputError(
                f"{self.run}: was trained on other keyframes than {now}; resume with its --data and --split"
            )
        if step > self.steps:
            raise InputError(
                f"{self.run}: is at step {step} already, beyond {self.steps} steps; give more, or no --resume"
            )
        resume_schedule(self.schedule, state["rate"])
        self.best = state.get("best", -math.inf)
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        return step

    def run_from(self, first: int) -> None:
        """All steps after the first ones, with validations and checkpoints."""
        self.check()
        options = self.config.train
        log = TrainingLog(self.config, self.run, first, self.steps, self.main)
        with InterruptRequest() as interrupt, log:
            for step, passes in enumerate(self.passes(first), first + 1):
                log.add(step, self.step(passes))
                if self.average is not None:
                    self.average.update(self.model, step)  # the first one copies
                stops = interrupt.requested and step < self.steps
                saves = stops or step % options.checkpoint_every == 0 or step == self.steps
                validates = self.validates(step)
                if saves or validates or step % options.log_every == 0:
                    log.write(self.scalars())
                if validates:
                    self.validate(step, log)
                if saves:
                    self.save(step)
                if stops:
                    raise Stopped(step, self.steps)
                if saves or validates:
                    log.restart_clock()

    def check(self) -> None:
        if self.validator is not None and self.main:
            self.validator.check(self.model_to_evaluate())
        self.barrier.wait()

    def passes(self, first: int) -> Iterator[list[Batch]]:
        """This process's batches of each step after `first`, one for each forward pass."""
        share = (self.accelerator.process_index, self.accelerator.num_processes)
        stream = batches(self.dataset, self.config, first, *share)
        while passes := list(islice(stream, self.config.train.accumulate)):
            yield passes

    def step(self, passes: Sequence[Batch]) -> dict[str, Tensor]:
        """One step of the optimizer; returns loss terms, their sum `loss` and the gradient's norm, on the device.

        The loss is the mean over the passes. Frames whose routes have no module that trains change no weight.
        """
        with statistics_kept(self.model) if passes[0].outage else nullcontext():
            sums = self._add_gradients(passes)
        norm = sums["loss"].new_zeros(())
        if any(each.grad is not None for each in self.parallel.parameters()):
            norm = self.accelerator.clip_grad_norm_(self.parallel.parameters(), self.config.train.gradient_clip)
            self.optimizer.step()
        with warnings.catch_warnings():  # torch takes a first step without gradients for a mistake
            warnings.simplefilter("ignore", UserWarning)
            self.schedule.step()
        self.optimizer.zero_grad()
        return {**sums, "norm": norm}

    def _add_gradients(self, passes: Sequence[Batch]) -> dict[str, Tensor]:
        """Backpropagate the mean over the passes; returns its terms and their sum `loss`."""
        sums: dict[str, Tensor] = {}
        for batch in passes:
            reduces = self.reduces_each_pass or batch is passes[-1]
            with nullcontext() if reduces else self.accelerator.no_sync(self.parallel):
                part, trace = batch.to(self.accelerator.device), Trace()
                losses = self.parallel(part.frames, part.labels, trace)
                losses["loss"] = torch.stack(list(losses.values())).sum()
                if losses["loss"].requires_grad:
                    self.accelerator.backward(losses["loss"] / len(passes))
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value.detach() / len(passes)
            self.routes = trace.routes
        return sums

    def scalars(self) -> dict[str, float]:
        """Numbers of the last step to log besides those of `step`."""
        return {
            **self.model.routing_balance(self.routes),
            "learning_rate": float(self.schedule.get_last_lr()[0]),
        }

    def model_to_evaluate(self) -> PerceptionModel:
        """A model with the weights to evaluate, which is not the one that trains."""
        if self.validated is None:
            assert self.averaged is not None
            return self.averaged
        self.validated.load_state_dict(self.model.state_dict())
        return self.validated

    def validates(self, step: int) -> bool:
        """Whether a validation follows on this step."""
        if self.config.train.validation is None or step == self.steps:
            return self.config.train.validation is not None
        period = self.config.train.validation_period(self.dataset.epoch_length)
        return step * self.config.train.batch // period > (step - 1) * self.config.train.batch // period

    def validate(self, step: int, log: TrainingLog) -> None:
        """Evaluate in the main process, log the scores, and keep the best model."""
        if self.main and self.validator is not None:
            model = self.model_to_evaluate()
            _require_finite(model.state_dict(), f"{self.run}: after step {step}")
            score, scores = self.validator.scores(model)
            log.write_validation(step, self.validator.settings.metric, scores)
            if score > self.best:
                self.best = score
                checkpoint.save_best(self.run, step, self.config, model, self.data, score)
        self.barrier.wait()

    def save(self, step: int) -> None:
        """Write RUN/checkpoints/step-*; main process only."""
        if not self.main:
            return
        model = self.model.state_dict()
        _require_finite(model, f"{self.run}: after step {step}")
        scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else {}
        best = {} if math.isinf(self.best) else {"best": self.best}
        state = {"rate": self.schedule.state_dict(), "scaler": scaler, "keyframes": self.keyframes, **best}
        average = None if self.averaged is None else self.averaged.state_dict()
        checkpoint.save(self.run, step, self.config, model, self.optimizer.state_dict(), state, self.data, average)

    def finish(self) -> Path:
        """Wait until all processes have finished; returns the folder of the last checkpoint.

        The model gets the weights of that checkpoint.
        """
        self.barrier.wait()
        if self.average is not None:
            self.model.load_state_dict(self.average.module.state_dict())
        return self.run / "checkpoints" / f"step-{self.steps:06d}"


def _require_possible(config: Config, run: Path, resume: bool) -> None:
    if not resume and checkpoint.newest(run) is not None:
        raise InputError(f"{run}: holds a trained run already; add --resume to go on with it, or choose another --out")
    if config.train.precision == "fp16" and not torch.cuda.is_available():
        raise InputError(f"{config.name}: train.precision fp16 needs a GPU; use bf16 or no")
    require_trackers(config.train.trackers)


def _record_spacing(model: PerceptionModel, spacing: tuple[float, float]) -> Config:
    modules = model.bank.modules
    modules = modules | {name: with_spacing(modules[name], spacing) for name in trained_modules(model)}
    model.reconfigure(model.config.model_copy(update={"modules": tuple(modules.values())}))
    return model.config


def _require_finite(state: Mapping[str, Tensor], where: str) -> None:
    names, sums = zip(*((name, value.detach().sum()) for name, value in state.items()), strict=True)
    finite = torch.isfinite(torch.stack([value.float() for value in sums])).tolist()
    for name, is_finite in zip(names, finite, strict=True):
        if not is_finite:
            raise InputError(f"{where} the weights {name} are not finite; lower train.learning_rate")


def describe_keyframes(tables: Keyframes, tokens: Sequence[str]) -> str:
    """Description of the keyframes of a training, such as `v1.0-mini: 323 keyframes of 8 scenes`."""
    return f"{tables.version}: {len(tokens)} keyframes of {len({*map(tables.scene, tokens)})} scenes"
