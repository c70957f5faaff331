"""Which parameters train, and their optimizer and schedule.

Frozen layers are in evaluation mode, so that their batch normalisations keep their statistics.
"""

from __future__ import annotations

import math
import warnings
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from perception.config import Schedule
from perception.datasets.keyframes import Keyframes
from perception.errors import InputError
from perception.model import PerceptionModel
from perception.modules.base import is_base_key
from perception.modules.memories import memories_of
from perception.sensors import sensor_facts
from perception.tasks.network import FittedNetwork


def joint(model: PerceptionModel) -> None:
    """Train base and modules together; a module gets gradients only from frames and tasks that route to it."""
    for task in model.tasks:
        if isinstance(model.head(task), FittedNetwork):
            raise InputError(
                f"tasks.{task}: this head is fitted to a trained model; train without it, then perception adapt RUN "
                f"--task {task}"
            )
    model.requires_grad_(True).train()


def post_hoc(model: PerceptionModel, modules: Sequence[str]) -> None:
    """Train only these modules, or the attention of Fuse blocks with these keys; base and other modules are frozen."""
    model.bank.train(*modules)
    if model.chooser is not None:
        model.chooser.requires_grad_(False).eval()
    model.added.requires_grad_(False).eval()


def train_added_task(model: PerceptionModel, task: str, modules: Sequence[str] = ()) -> None:
    """Train only the head of an added task and its own modules."""
    post_hoc(model, modules)
    model.added[task].requires_grad_(True).train()


def freeze(model: PerceptionModel, factors: Mapping[str, float]) -> None:
    """Freeze the parameters whose factor of the rate is 0, and the statistics of their layers."""
    for path, layer in model.named_modules():
        own = dict(layer.named_parameters(path, recurse=False))
        for name, parameter in own.items():
            if _factor(name, factors) == 0:
                parameter.requires_grad_(False)
        if own and not any(parameter.requires_grad for parameter in own.values()):
            layer.training = False


def parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def trained_modules(model: PerceptionModel) -> list[str]:
    bank = model.bank
    return [
        name for name in bank.modules if any(p.requires_grad for at in bank.at(name).values() for p in at.parameters())
    ]


def with_conditions(tables: Keyframes, tokens: Sequence[str], facts: Sequence[str]) -> list[str]:
    """The keyframes that are known to have all conditions among the facts; InputError if there is none."""
    required = set(facts) & set(tables.taxonomy.condition_values)
    found = [token for token in tokens if required <= set(tables.conditions(token).known())]
    if not found:
        raise InputError(f"{tables.dataroot}: no keyframe of the split is known to have {', '.join(facts)}")
    return found


def lacking(facts: Sequence[str]) -> list[str]:
    """The sensors that frames with these facts lack."""
    return [sensor for sensor in sensor_facts() if f"no-{sensor}" in facts]


def require_reachable(model: PerceptionModel, module: str) -> None:
    """Raise InputError if a module trains nothing: its slots reach none of its tasks, or no training frame has the
    sensors that it requires, or lacks them.

    All have one of the network's sensors at least, but where a memory trains: its clips may end without any.
    """
    tasks = model.tasks.keys() & model.bank.requirements(module)
    if tasks and not any(model.reaches(slot, task) for slot in model.bank.at(module) for task in tasks):
        names = " and ".join(sorted(tasks))
        raise InputError(f"module {module}: runs for {names} alone, which none of its slots reaches; change its slots")
    own = [sensor.fact for sensor in model.config.spec.sensors.values()]
    required = {fact for fact in model.bank.requirements(module) if fact.removeprefix("no-") in model.bank.sensors}
    left = [sensor for sensor in own if f"no-{sensor}" not in required]
    possible = {*left, *(f"no-{sensor}" for sensor in own)}
    blind = not left and not memories_of(model.bank.modules[module])
    if blind or not required <= possible:
        facts = f"{' and '.join(sorted(required))}, which no training frame of a network with {' and '.join(own)} has"
        raise InputError(f"module {module}: requires {facts}; change its conditions")


def optimizer_of(
    model: nn.Module, rate: float, decay: float, factors: Mapping[str, float] | None = None
) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters. Modules have no weight decay: not all are the identity at zero.

    Args:
        factors: glob of parameters of the model -> factor of their rate; the first glob that matches counts.
    """
    factors = factors or {}
    every = [name for name, _ in model.named_parameters()]
    for pattern in factors:
        if not any(fnmatchcase(name, pattern) for name in every):
            raise InputError(f"train.rates: {pattern} matches no parameter; there are such as {every[0]}")
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in parameters(model):
        groups.setdefault((not is_base_key(name), _factor(name, factors)), []).append(parameter)
    options = [
        {"params": group, "lr": rate * factor, "weight_decay": 0.0 if is_module else decay}
        for (is_module, factor), group in sorted(groups.items(), key=lambda item: item[0])
    ]
    return torch.optim.AdamW(options, lr=rate, foreach=True)


def _factor(name: str, factors: Mapping[str, float]) -> float:
    """The factor of a parameter's rate: that of the first glob that matches, else 1."""
    return next((factor for pattern, factor in factors.items() if fnmatchcase(name, pattern)), 1.0)


@contextmanager
def statistics_kept(model: nn.Module) -> Iterator[None]:
    """Passes after which all batch normalisations have the running statistics that they had before.

    A frame without its sensors has other features than all others. Running statistics of both fit neither.
    """
    momenta = {x: x.momentum for x in model.modules() if isinstance(x, nn.modules.batchnorm._BatchNorm)}
    for norm in momenta:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in momenta.items():
            norm.momentum = momentum


def set_momentum(model: nn.Module, momentum: float) -> None:
    """Set the weight of a batch in the running statistics of all batch normalisations; with 0 they use these."""
    for layer in model.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.momentum = momentum
            layer.training &= momentum > 0


def schedule_of(optimizer: torch.optim.Optimizer, schedule: Schedule, steps: int) -> LRScheduler:
    """The schedule over this number of steps; the peak of each group of parameters is its rate in the optimizer."""
    if schedule.kind != "one_cycle":
        return LambdaLR(optimizer, partial(share_of_peak, schedule, steps))
    total = steps + 1
    return OneCycleLR(
        optimizer,
        [group["lr"] for group in optimizer.param_groups],
        total_steps=total,
        # A rise that ends with the first step, which has its first and its last rate, divides by zero in torch.
        pct_start=0.0 if schedule.warm_up * total == 1 else schedule.warm_up,
        div_factor=schedule.start_divisor,
    )


def resume_schedule(schedule: LRScheduler, state: Mapping[str, Any]) -> None:
    """Load the state of a schedule, which may have had another number of steps, and set the rates of the next step.

    The rates are those that the schedule has at this step with its own number of steps.
    """
    length = {key: value for key, value in schedule.state_dict().items() if key in ("total_steps", "_schedule_phases")}
    before = {key: state[key] - 1 for key in ("last_epoch", "_step_count")}
    schedule.load_state_dict({**state, **length, **before})
    with warnings.catch_warnings():  # torch expects a step of the optimizer first
        warnings.simplefilter("ignore", UserWarning)
        schedule.step()


def share_of_peak(schedule: Schedule, steps: int, done: int) -> float:
    """Rate of the step after `done` of all steps, relative to the peak, for the kinds cosine and step."""
    rise = schedule.warm_up * steps
    if done < rise:
        start = 1 / schedule.start_divisor
        return start + (1 - start) * done / rise
    if schedule.kind == "step":
        return float(0.1 ** bisect_right(schedule.milestones, done / steps))
    return (1 + math.cos(math.pi * min(1.0, (done - rise) / max(1.0, steps - rise)))) / 2
