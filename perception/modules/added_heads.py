"""Heads of tasks that were added to a trained network, besides those of its base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from perception.errors import InputError
from perception.modules.slot import Slot
from perception.tasks.task import TaskConfig


@dataclass(frozen=True)
class Head:
    """The head of an added task."""

    task: str
    config: TaskConfig
    network: nn.Module

    def slots(self) -> dict[str, Slot]:
        """The slots of the head by name."""
        return {module.name: module for module in self.network.modules() if isinstance(module, Slot)}


class AddedHeads(Mapping[str, Head]):
    """Task -> added head; empty for a network that is not a `PerceptionModel`, such as a foreign one.

    Args:
        slots: of the network, by name; the slots of a head are added and removed with it.
    """

    def __init__(self, network: nn.Module, slots: dict[str, Slot]) -> None:
        self.network: Any = network
        self.slots = slots

    def __getitem__(self, task: str) -> Head:
        network = self._added()[task]
        return Head(task, self.network.config.tasks[task], network)

    def __iter__(self) -> Iterator[str]:
        return iter(self._added())

    def __len__(self) -> int:
        return len(self._added())

    def _added(self) -> Mapping[str, nn.Module]:
        added: Mapping[str, nn.Module] = getattr(self.network, "added", {})
        return added

    def extends(self, task: str) -> bool:
        """Whether an added head extends one of the base."""
        return task in self.network.heads

    def new(self, task: str, options: Mapping[str, Any], source: str) -> Head:
        """A head with initial weights, not attached yet.

        Raises:
            InputError: an unknown task or option, a task of the base, or a foreign network; the message names `source`.
        """
        if not hasattr(self.network, "new_head"):
            raise InputError(f"{source}: a foreign network takes no head of a task")
        return Head(task, *self.network.new_head(task, options, source))

    def attach(self, head: Head) -> None:
        self.network.attach_head(head.task, head.config, head.network)

    def delete(self, task: str) -> None:
        for slot in self[task].slots():
            del self.slots[slot]
        self.network.detach_head(task)
