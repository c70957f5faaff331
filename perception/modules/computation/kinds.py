"""The computation functions by kind."""

from __future__ import annotations

from typing import Any

from perception.modules.computation.computation import Computation
from perception.modules.spec import Module, computations

KINDS: dict[str, type[Computation]] = computations()


def build(module: Module, layer: Any, conditions: int) -> Computation:
    """A new computation function, for this layer, of a module of one kind.

    Args:
        conditions: length of a condition vector.
    """
    make: Any = KINDS[module.kind]
    further = {"conditions": conditions} if make.conditional else {}
    computation: Computation = make(layer, **further, **module.options())
    return computation
