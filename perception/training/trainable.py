"""Which parameters of a model train. Frozen layers are in evaluation mode, so that their batch
normalisations keep their statistics."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from perception.datasets.keyframes import Keyframes
from perception.errors import InputError
from perception.model import PerceptionModel
from perception.modules.base import is_base_key
from perception.tasks.network import FittedNetwork
from perception.training.losses import Scope


def joint(model: PerceptionModel) -> None:
    """Train base and modules together; a module gets gradients only from frames and tasks that route to it.

    Raises:
        InputError: a task has no gradients.
    """
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


def routing(model: PerceptionModel) -> None:
    """Train only the learned router; base and modules are frozen."""
    post_hoc(model, ())
    model.chooser.requires_grad_(True).train()


def added_task(model: PerceptionModel, task: str, modules: Sequence[str] = ()) -> Scope:
    """Train only the head of an added task and its own modules."""
    post_hoc(model, modules)
    model.added[task].requires_grad_(True).train()
    return Scope((task,), model.tasks[task].random_routes)


def base(model: PerceptionModel, parts: Sequence[str] = ("*",)) -> None:
    """Train the parameters of the base that match one of the globs, such as `heads.*`; no module."""
    model.requires_grad_(False).eval()
    for path, part in model.named_modules():
        layer: Any = part
        own = {f"{path}.{name}": parameter for name, parameter in layer.named_parameters(recurse=False)}
        if own and all(is_base_key(name) and any(fnmatchcase(name, p) for p in parts) for name in own):
            layer.training = True
            for parameter in own.values():
                parameter.requires_grad_(True)


def parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Names and values of the parameters that train."""
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def with_conditions(tables: Keyframes, tokens: Sequence[str], facts: Sequence[str]) -> list[str]:
    """The keyframes that are known to have all conditions among the facts; InputError if there is none."""
    required = set(facts) & set(tables.taxonomy.condition_values)
    found = [token for token in tokens if required <= set(tables.conditions(token).known())]
    if not found:
        raise InputError(f"{tables.dataroot}: no keyframe of the split is known to have {', '.join(facts)}")
    return found
