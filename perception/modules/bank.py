"""The bank: which modules a model has, and at which slots."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from perception.errors import InputError
from perception.modules.computation.low_rank import LowRank
from perception.modules.slot import Route, Slot

COMPUTATIONS = {LowRank.kind: LowRank}


class Bank:
    """Adds modules to the slots of a network, routes through them, and folds them away."""

    def __init__(self, network: nn.Module) -> None:
        self.slots = {m.name: m for m in network.modules() if isinstance(m, Slot)}

    def match(self, patterns: Sequence[str]) -> list[Slot]:
        """The slots with these names or globs.

        Raises:
            InputError: a pattern fits no slot.
        """
        found: dict[str, Slot] = {}
        for pattern in patterns:
            fitting = {name: slot for name, slot in self.slots.items() if fnmatchcase(name, pattern)}
            if not fitting:
                raise InputError(f"no slot is called {pattern!r}; there are {', '.join(self.slots)}")
            found |= fitting
        return list(found.values())

    def add(self, name: str, kind: str, slots: Sequence[str], rank: int) -> None:
        """A new module, the identity at first, at each slot that the patterns name."""
        if any(name in slot.computations for slot in self.slots.values()):
            raise InputError(f"the model already has a module called {name!r}")
        for slot in self.match(slots):
            slot.computations[name] = COMPUTATIONS[kind](slot.layer, rank)

    def delete(self, name: str) -> None:
        """Take the module out of every slot; the rest of the network keeps its bytes."""
        for slot in self.slots.values():
            if name in slot.computations:
                del slot.computations[name]

    def apply(self, route: Route) -> None:
        """Put the route in force at every slot."""
        for slot in self.slots.values():
            slot.route = route

    def fold(self, route: Route) -> None:
        """Write the routed modules into the weights of their layers and empty all slots."""
        self.apply(route)
        for slot in self.slots.values():
            slot.fold()
