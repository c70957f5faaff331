"""How a model trains on several processes, which accelerate has started."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import distributed as dist

from perception.datasets.keyframes import Keyframes
from perception.errors import InputError
from perception.io.distributed import processes
from perception.model import PerceptionModel
from perception.training.optimize import trained_modules

COLLECTIVE_TIMEOUT = timedelta(minutes=10)  # after which a process that does not answer counts as lost
MAIN_PROCESS_TIMEOUT = timedelta(hours=12)  # that the others wait for the main process, such as for a validation


def accelerator_of(
    model: PerceptionModel, tasks: Collection[str], tables: Keyframes, tokens: Sequence[str]
) -> Accelerator:
    """The accelerator of a training of the model on these keyframes."""
    for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true":
            raise InputError(f"accelerate launch: {name} is not supported; launch without it")
    modules = trained_modules(model)
    # What a learned router and the attention of Fuse blocks give gradients to depends on the frame.
    choosing = [model.chooser, *(slot.fusions for slot in model.bank.slots.values())]
    chooses = any(p.requires_grad for part in choosing if part is not None for p in part.parameters())
    known = {*tasks} | set.intersection(*(set(tables.conditions(token).known()) for token in tokens))
    changing = chooses or not all(model.bank.requirements(name) <= known for name in modules)
    # Parameters without a gradient are searched for in the graph of each pass only if they differ between passes.
    search = DistributedDataParallelKwargs(find_unused_parameters=changing, static_graph=bool(modules) and not changing)
    return Accelerator(
        mixed_precision=model.config.train.precision,
        cpu=not torch.cuda.is_available(),
        kwargs_handlers=[search, InitProcessGroupKwargs(timeout=COLLECTIVE_TIMEOUT)],
    )


def reduces_each_pass(accelerator: Accelerator) -> bool:
    """Whether the gradients of a step are summed over the processes after each pass, instead of after the last alone.

    Where modules train: the last pass may have no frames for them, and a static graph knows no pass without a sum. DDP
    takes the gradients of the passes before, which all processes share, into the mean as they are.
    """
    handler = accelerator.ddp_handler
    return handler is not None and (handler.find_unused_parameters or handler.static_graph)


@contextmanager
def report_lost_process(run: Path) -> Iterator[None]:
    """Run what all processes take part in."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise InputError(
            f"{run}: another process of the training has ended or does not answer, see what it says; start it again: "
            "the same command with --resume"
        ) from None


class LongBarrier:
    """Lets all processes wait for the main one, for longer than other collective operations may last."""

    def __init__(self) -> None:
        # Of gloo, which notices at once that a process has died.
        self.group = dist.new_group(timeout=MAIN_PROCESS_TIMEOUT, backend="gloo") if processes() > 1 else None

    def wait(self) -> None:
        if self.group is not None:
            dist.barrier(self.group)
