"""Parameters, gradients and moments divided among the processes (FSDP2), for trunks that a GPU does not hold alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from perception.config import Config
from perception.distributed import processes
from perception.errors import InputError
from perception.model import PerceptionModel
from perception.training.checkpoint import Stateful
from perception.training.losses import Losses


def divides(config: Config) -> bool:
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


def divide(losses: Losses, optimizer: Any, average: PerceptionModel | None = None) -> float:
    """Divide a model, its average and the moments of its optimizer; returns the share of the parameters here.

    All processes have the same values before. A stage of the trunk is whole only while it computes.
    """
    names = {parameter: name for name, parameter in losses.named_parameters()}
    mesh = init_device_mesh(next(iter(names)).device.type, (processes(),))
    _divide(losses, losses.model.trunk.stages, mesh)
    if average is not None:
        _divide(average, average.trunk.stages, mesh)
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


def _divide(root: nn.Module, stages: Iterable[Any], mesh: DeviceMesh) -> None:
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


def whole(value: Any) -> Any:
    """Tensors that are divided, also inside dictionaries and lists, as whole ones; all processes take part."""
    if isinstance(value, DTensor):
        return value.full_tensor()
    if isinstance(value, Mapping):
        return {key: whole(each) for key, each in value.items()}
    return [whole(each) for each in value] if isinstance(value, list) else value


class Whole:
    """The state of a module or optimizer at this moment; all processes take part."""

    def __init__(self, part: Stateful) -> None:
        self._state: dict[str, Any] = whole(part.state_dict())

    def state_dict(self) -> dict[str, Any]:
        return self._state
