"""Merges modules into the weights of the base, and restores both."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from perception.errors import InputError
from perception.modules.aggregation.composition import is_affine
from perception.modules.route import Route
from perception.modules.slot import Slot


class Merge:
    """Merges the modules of a route into the layers of the slots, which hold no module until `undo`.

    Raises:
        InputError: one of the modules does not fold; the slots have not changed.
    """

    def __init__(self, slots: Iterable[Slot], route: Route) -> None:
        self._backups = [_Backup.of(slot) for slot in slots if slot.computations]
        try:
            for backup in self._backups:
                _require_foldable(backup.slot, route)
            self.names = {name for backup in self._backups for name in backup.slot.routed(route)}
            for backup in self._backups:
                backup.slot.fold(route)
        except Exception:
            self.undo()
            raise

    @property
    def computations(self) -> dict[str, nn.ModuleDict]:
        """Slot -> its modules before the merge."""
        return {backup.slot.name: backup.computations for backup in self._backups}

    def undo(self) -> None:
        """Restore weights and modules bit for bit."""
        for backup in self._backups:
            backup.restore()


class _Backup(NamedTuple):
    """The state of a slot before the merge."""

    slot: Slot
    layer: dict[str, Tensor]
    constant: Tensor | None
    computations: nn.ModuleDict
    fusions: nn.ModuleDict

    @classmethod
    def of(cls, slot: Slot) -> _Backup:
        layer = {name: tensor.clone() for name, tensor in slot.layer.state_dict().items()}
        return cls(slot, layer, slot.constant, slot.computations, slot.fusions)

    @torch.no_grad()
    def restore(self) -> None:
        """Restore the slot in place, because an optimizer refers to its parameters."""
        if "bias" not in self.layer:
            self.slot.layer.bias = None  # folding may have added one
        for name, tensor in self.slot.layer.state_dict().items():
            tensor.copy_(self.layer[name])
        self.slot.constant = self.constant
        self.slot.computations, self.slot.fusions = self.computations, self.fusions


def _require_foldable(slot: Slot, route: Route) -> None:
    for name in slot.routed(route):
        module, weight = slot.computations[name], route.at(slot.name)[name]
        if not module.affine:
            raise InputError(
                f"cannot merge {name!r}: a {module.kind} module is not affine, it has to stay at its slots"
            )
        if isinstance(weight, Tensor):
            raise InputError(f"cannot merge {name!r}: its weight differs from frame to frame; give one number")
        if module.conditional and (route.z is None or len(route.z) != 1):
            raise InputError(f"cannot merge {name!r}: a {module.kind} module needs a Route with one condition vector z")
    if not route.static:
        raise InputError("cannot merge: the weights of this route depend on the input")
    if route.block is not None and not is_affine(route.block, set(slot.fusions)):
        raise InputError(f"cannot merge {route.block!r}: the attention of fuse is not affine")
