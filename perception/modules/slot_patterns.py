"""Matches the slot patterns of modules."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from perception.errors import InputError
from perception.modules.computation.kinds import KINDS, ModuleUnion
from perception.modules.slot import Slot
from perception.modules.spec import Module


def matching(slots: Mapping[str, Slot], patterns: Sequence[str], kind: str) -> list[Slot]:
    """The slots that match these names or globs and whose layers a module of this kind can attach to.

    Raises:
        InputError: a pattern matches no such slot.
    """
    found: dict[str, Slot] = {}
    for pattern in patterns:
        matches = {name: slot for name, slot in slots.items() if fnmatchcase(name, pattern)}
        if not matches:
            raise InputError(f"no slot is called {pattern!r}; there are {', '.join(slots)}")
        attachable = {name: slot for name, slot in matches.items() if KINDS[kind].attaches_to(slot.layer)}
        if not attachable:
            layers = sorted({type(slot.layer).__name__ for slot in matches.values()})
            raise InputError(f"{kind} does not attach to {', '.join(layers)}, which is what {pattern!r} names")
        found |= attachable
    return list(found.values())


def exact(spec: Module, slots: Mapping[str, Slot], chosen: Collection[str]) -> Any:
    """The module with its patterns replaced by the names of the chosen slots that they match."""

    def with_names(part: Any) -> Any:
        matches = tuple(slot.name for slot in matching(slots, part.slots, part.kind) if slot.name in chosen)
        return part.model_copy(update={"slots": matches})

    if isinstance(spec, ModuleUnion):
        return spec.model_copy(update={"parts": tuple(with_names(part) for part in spec.parts)})
    return with_names(spec)


def fits(spec: Module, slots: Collection[str]) -> bool:
    """Whether a pattern of the module matches one of the slots."""
    patterns = [pattern for part in spec.single() for pattern in part.slots]
    return any(fnmatchcase(slot, pattern) for slot in slots for pattern in patterns)
