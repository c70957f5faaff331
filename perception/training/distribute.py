"""How a model trains on several processes, which accelerate has started.

Parameters, gradients and moments may be divided among the processes (FSDP2), for trunks that a GPU does not hold alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from perception.config import Config
from perception.datasets.keyframes import Keyframes
from perception.errors import InputError
from perception.io.distributed import DistributedNorm, processes
from perception.model import PerceptionModel
from perception.training.losses import Losses, Scope

COLLECTIVE_TIMEOUT = timedelta(minutes=10)  # after which a process that does not answer counts as lost
MAIN_PROCESS_TIMEOUT = timedelta(hours=12)  # that the others wait for the main process, such as for a validation


def accelerator_of(model: PerceptionModel, scope: Scope, tables: Keyframes, tokens: Sequence[str]) -> Accelerator:
    """The accelerator of a training of the model on these keyframes.

    Raises:
        InputError: `accelerate launch` shall divide the model itself.
    """
    for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true":
            raise InputError(
                f"accelerate launch: {name} is not supported; launch without it, and set train.shard=true to divide "
                "the model among the GPUs"
            )
    modules = find_trained_modules(model)
    chooses = model.chooser is not None and any(p.requires_grad for p in model.chooser.parameters())
    changing = chooses or not always_run(model, scope, modules, tables, tokens)
    # Parameters without a gradient are searched for in the graph of each pass only if they differ between passes.
    search = DistributedDataParallelKwargs(find_unused_parameters=changing, static_graph=bool(modules) and not changing)
    return Accelerator(
        mixed_precision=model.config.train.precision,
        cpu=not torch.cuda.is_available(),
        kwargs_handlers=[search, InitProcessGroupKwargs(timeout=COLLECTIVE_TIMEOUT)],
    )


def find_trained_modules(model: PerceptionModel) -> set[str]:
    """Names of the modules, and keys of the Fuse blocks, with parameters that train."""
    parts = (part for slot in model.bank.slots.values() for part in (slot.computations, slot.fusions))
    every = [item for part in parts for item in part.items()]
    return {name for name, part in every if any(parameter.requires_grad for parameter in part.parameters())}


def always_run(
    model: PerceptionModel, scope: Scope, modules: set[str], tables: Keyframes, tokens: Sequence[str]
) -> bool:
    """Whether all these modules run on every frame, for what is known before the frames are read."""
    if not modules <= model.bank.modules.keys():
        return False  # the attention of a Fuse block runs with the modules in it
    known = set(scope.tasks)
    if not scope.random_conditions:
        known |= set.intersection(*(set(tables.conditions(token).known()) for token in tokens))
    return all(model.bank.requirements(name) <= known for name in modules)


def reduces_each_pass(accelerator: Accelerator) -> bool:
    """Whether the gradients of a step are summed over the processes after each pass, instead of after the last alone.

    Where modules train: the last pass may have no frames for them, and a static graph knows no pass without a sum. DDP
    takes the gradients of the passes before, which all processes share, into the mean as they are.
    """
    handler = accelerator.ddp_handler
    return handler is not None and (handler.find_unused_parameters or handler.static_graph)


@contextmanager
def report_lost_process(run: Path) -> Iterator[None]:
    """Run what all processes take part in.

    Raises:
        InputError: one of them has ended, or does not answer in time.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise InputError(
            f"{run}: another process of the training has ended or does not answer, see what it says; start it again: "
            "perception train with --resume, perception adapt with another --out"
        ) from None


class LongBarrier:
    """Lets all processes wait for the main one, for longer than other collective operations may last."""

    def __init__(self) -> None:
        # Of gloo, which notices at once that a process has died.
        self.group = dist.new_group(timeout=MAIN_PROCESS_TIMEOUT, backend="gloo") if processes() > 1 else None

    def wait(self) -> None:
        """Return when all processes have come here."""
        if self.group is not None:
            dist.barrier(self.group)


def is_sharded(config: Config) -> bool:
    """Whether the model of a training is divided.

    Raises:
        InputError: the training has a part that works with whole models alone.
    """
    if not config.train.shard:
        return False
    refused = {
        "train.precision fp16": config.train.precision == "fp16",
        "modules": config.modules,
        "routing": config.routing,
    }
    for key, is_there in refused.items():
        if is_there:
            raise InputError(f"{config.name}: train.shard does not work with {key}; remove one of them")
    return processes() > 1


def shard(losses: Losses, optimizer: Any, average: PerceptionModel | None = None) -> float:
    """Divide a model, its average and the moments of its optimizer; returns the share of the parameters here.

    All processes have the same values before. A stage of the trunk is whole only while it computes.
    """
    names = {parameter: name for name, parameter in losses.named_parameters()}
    mesh = init_device_mesh(next(iter(names)).device.type, (processes(),))
    _shard(losses, losses.model.trunk.stages, mesh)
    if average is not None:
        _shard(average, average.trunk.stages, mesh)
    parts = dict(losses.named_parameters())
    moments = {
        parts[names[whole]]: {name: _part(value, parts[names[whole]]) for name, value in state.items()}
        for whole, state in optimizer.state.items()
    }
    for group in optimizer.param_groups:
        group["params"] = [parts[names[whole]] for whole in group["params"]]
    optimizer.state.clear()
    optimizer.state.update(moments)
    here: list[Any] = [*parts.values()]
    return sum(part.to_local().numel() for part in here) / sum(part.numel() for part in here)


def _shard(root: nn.Module, stages: Iterable[Any], mesh: DeviceMesh) -> None:
    for parameter in root.parameters():
        parameter.data = parameter.data.contiguous()  # which channels_last is not
    for stage in stages:
        fully_shard(stage, mesh=mesh)
    fully_shard(root, mesh=mesh)


def _part(value: Tensor, parameter: Any) -> Tensor:
    """This process's part of a moment; the counter of steps is not divided."""
    if value.ndim == 0:
        return value
    return distribute_tensor(value.contiguous(), parameter.device_mesh, parameter.placements)


def gather(value: Any) -> Any:
    """Tensors that are divided, also inside dictionaries and lists, as whole ones; all processes take part."""
    if isinstance(value, DTensor):
        return value.full_tensor()
    if isinstance(value, Mapping):
        return {key: gather(each) for key, each in value.items()}
    return [gather(each) for each in value] if isinstance(value, list) else value


Place = tuple[nn.Module, str, nn.Module]  # a module, and the name of a layer in it with the layer


def synchronise_norms(model: nn.Module) -> list[Place]:
    """Let all batch normalisations compute their statistics over all processes, which then run them equally often.

    Returns the layers that were replaced; those in their place have the same parameters and statistics.
    """
    places: list[Place] = [
        (parent, name, layer)
        for parent in model.modules()
        for name, layer in parent.named_children()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm)
    ]
    if next(model.parameters()).is_cuda:
        # timm's layers may have an activation in the normalisation, which torch's conversion would lose.
        convert_sync_batchnorm(model)
    else:
        for parent, name, layer in places:
            setattr(parent, name, DistributedNorm(layer))
    return places


def restore_norms(places: Iterable[Place]) -> None:
    """Undo `synchronise_norms`."""
    for parent, name, layer in places:
        setattr(parent, name, layer)
