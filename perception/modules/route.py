"""A route: which modules compute, with what weight, and how they combine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from torch import Tensor

from perception.modules.composition import Block, Parallel
from perception.modules.computation.computation import Weight


@dataclass(frozen=True)
class Route:
    """The decision of a router. Modules without a weight do not run.

    If `static`, weights and `z` are the same for all inputs, so that affine modules can be folded.
    """

    weights: Mapping[str, Weight] = field(default_factory=dict)
    by_slot: Mapping[str, Mapping[str, Weight]] = field(default_factory=dict)  # slots with weights of their own
    block: Block | None = None  # how the modules combine; None: side by side, their deltas summed
    z: Tensor | None = None  # (B, Z) or (1, Z) condition vectors for conditional modules
    static: bool = True

    def at(self, slot: str) -> Mapping[str, Weight]:
        """Weights of the modules at the slot of this name."""
        return self.by_slot.get(slot, self.weights)

    def combination(self, slot: str) -> Block | None:
        """How the modules combine at the slot; None if none is routed there."""
        if self.block is not None:
            return self.block
        names = tuple(self.at(slot))
        return Parallel(*names) if names else None

    def of_rows(self, frames: Tensor) -> Route:
        """The same route with weights and `z` for rows instead of frames: frames (N,) int, the frame of each row."""

        def by_row(weight: Weight) -> Weight:
            several = isinstance(weight, Tensor) and weight.ndim == 1 and len(weight) > 1
            return weight.to(frames.device)[frames] if isinstance(weight, Tensor) and several else weight

        def all_by_row(weights: Mapping[str, Weight]) -> dict[str, Weight]:
            return {name: by_row(weight) for name, weight in weights.items()}

        z = self.z if self.z is None or len(self.z) == 1 else self.z.to(frames.device)[frames]
        by_slot = {slot: all_by_row(weights) for slot, weights in self.by_slot.items()}
        return replace(self, weights=all_by_row(self.weights), by_slot=by_slot, z=z)

    def __deepcopy__(self, memo: object) -> Route:
        """Itself: routes are immutable, and torch does not copy tensors that are part of a graph."""
        return self


Routes = list[tuple[Route, tuple[str, ...]]]  # each with the tasks that it serves


class CurrentRoute:
    """The route that the slots of a network run, the same object for all of them."""

    def __init__(self) -> None:
        self.route = Route()

    @contextmanager
    def running(self, route: Route) -> Iterator[None]:
        """Run this route inside, and the earlier one again afterwards."""
        earlier, self.route = self.route, route
        try:
            yield
        finally:
            self.route = earlier
