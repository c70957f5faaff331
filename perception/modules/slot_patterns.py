"""Which slots the patterns of a module name."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from perception.errors import InputError
from perception.modules.computation.kinds import KINDS
from perception.modules.slot import Slot
from perception.modules.spec import Module, ModuleUnion


def matching(slots: Mapping[str, Slot], patterns: Sequence[str], kind: str) -> list[Slot]:
    """The slots with these names or globs whose layers a module of this kind can attach to.

    Raises:
        InputError: a pattern fits no such slot.
    """
    found: dict[str, Slot] = {}
    for pattern in patterns:
        fitting = {name: slot for name, slot in slots.items() if fnmatchcase(name, pattern)}
        if not fitting:
            raise InputError(f"no slot is called {pattern!r}; there are {', '.join(slots)}")
        able = {name: slot for name, slot in fitting.items() if KINDS[kind].attaches_to(slot.layer)}
        if not able:
            layers = sorted({type(slot.layer).__name__ for slot in fitting.values()})
            raise InputError(f"{kind} does not attach to {', '.join(layers)}, which is what {pattern!r} names")
        found |= able
    return list(found.values())


def exact(spec: Module, slots: Mapping[str, Slot], chosen: Collection[str]) -> Any:
    """The module with the names of those slots among the chosen that its patterns fit, instead of the patterns."""

    def named(part: Any) -> Any:
        own = tuple(slot.name for slot in matching(slots, part.slots, part.kind) if slot.name in chosen)
        return part.model_copy(update={"slots": own})

    if isinstance(spec, ModuleUnion):
        return spec.model_copy(update={"parts": tuple(named(part) for part in spec.parts)})
    return named(spec)


def fits(spec: Module, slots: Collection[str]) -> bool:
    """Whether a pattern of the module fits one of the slots."""
    patterns = [pattern for part in spec.single() for pattern in part.slots]
    return any(fnmatchcase(slot, pattern) for slot in slots for pattern in patterns)
