"""Training settings: which parameters train. Each prepares a model's parameters and modes for the loop.

A frozen layer is in evaluation mode, so that its batch normalisation keeps its statistics.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from perception.datasets.keyframes import Keyframes
from perception.frame import CONDITION_VALUES
from perception.model import PerceptionModel
from perception.modules.base_weights import is_own
from perception.modules.routing.fixed import FixedRouter
from perception.modules.routing.random_conditions import WanderingRouter


def joint(model: PerceptionModel) -> None:
    """Train base and modules together; a gradient reaches a module only from frames and tasks that route to it."""
    model.requires_grad_(True).train()


def post_hoc(model: PerceptionModel, modules: Sequence[str]) -> None:
    """Train only these modules; base and other modules are frozen. Adding one at a time is continual learning.

    The key of a Fuse block stands for its attention.
    """
    model.bank.train(*modules)
    if model.chooser is not None:
        model.chooser.requires_grad_(False).eval()
    model.added.requires_grad_(False).eval()


def routing(model: PerceptionModel) -> None:
    """Train only the learned router; base and modules are frozen."""
    post_hoc(model, ())
    model.chooser.requires_grad_(True).train()


def added_task(model: PerceptionModel, task: str, modules: Sequence[str] = ()) -> None:
    """Train only the head of an added task and modules of its own; all else is frozen."""
    assert isinstance(model.router, FixedRouter), "the model is folded"
    post_hoc(model, modules)
    model.added[task].requires_grad_(True).train()
    model.computed = (task,)
    if model.tasks[task].random_routes:
        model.router = WanderingRouter(model.router)


def base(model: PerceptionModel, parts: Sequence[str] = ("*",)) -> None:
    """Train the base, or the parts of it that globs of parameter names match, such as `heads.*`; no module."""
    model.requires_grad_(False).eval()
    for path, part in model.named_modules():
        own: Any = part
        names = [f"{path}.{name}" for name, _ in own.named_parameters(recurse=False)]
        if names and all(is_own(name) and any(fnmatchcase(name, p) for p in parts) for name in names):
            own.requires_grad_(True).train()


def trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Names and parameters that train."""
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def optimizer_of(model: nn.Module, rate: float, decay: float) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters. Modules have no weight decay: not all are the identity at zero."""
    groups: dict[bool, list[nn.Parameter]] = {False: [], True: []}
    for name, parameter in trainable(model):
        groups[not is_own(name)].append(parameter)
    settings = [
        {"params": parameters, "weight_decay": 0.0 if module else decay}
        for module, parameters in groups.items()
        if parameters
    ]
    return torch.optim.AdamW(settings, lr=rate, foreach=True)


def under(tables: Keyframes, tokens: Sequence[str], facts: Sequence[str]) -> list[str]:
    """The keyframes whose conditions include all those among `facts`."""
    asked = set(facts) & set(CONDITION_VALUES)
    return [token for token in tokens if asked <= set(tables.conditions(token).known())]
