"""The part of the network with a state, between fusion and trunk: the fused map, and what memories make of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from perception.grid import BevGrid
from perception.modules.computation.memory import FusedMap, Remembered
from perception.modules.memories import SLOT
from perception.modules.slot import Slot
from perception.state import MOTION_INPUTS

STATE = "state"


class MemorySlot(Slot):
    """The fused map (C = `channels`) of a frame, which memories at the slot mix with that of the frame before.

    Its state (B, C, rows / stride, columns / stride) is that map, with the memory applied; without a memory it has
    none.

    Attributes:
        states: name -> how the network moves it with the vehicle.
    """

    states: ClassVar[Mapping[str, Literal["bev", "none"]]] = {STATE: "bev"}

    def __init__(self, grid: BevGrid, channels: int) -> None:
        super().__init__(SLOT, FusedMap(grid, channels))

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, rows, columns) of the map."""
        shape: tuple[int, ...] = self.layer.shape
        return shape

    def remember(self, fused: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """The map (B, C, rows, columns) with the memory applied, as far as the inputs of the network have a state."""
        past = {name: inputs[name] for name in MOTION_INPUTS} if STATE in inputs else {}
        mixed: Tensor = self(Remembered(fused, inputs.get(STATE), past, self.layer))
        return mixed

    def no_states(self, frames: int) -> dict[str, Tensor]:
        """The states of frames that have none before; empty without a memory."""
        memories: Iterable[Any] = self.computations.values()  # all have the same stride
        stride = next((memory.stride for memory in memories), None)
        if stride is None:
            return {}
        channels, rows, columns = self.shape
        return {STATE: self.layer.centers.new_zeros(frames, channels, rows // stride, columns // stride)}

    def next_states(self, remembered: Tensor, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The states of the next frame, from the map with the memory applied; without a state that map."""
        state = inputs.get(STATE)
        return {STATE: remembered if state is None else self.layer.reduce(remembered, state)}

    def bounded(self, x: Remembered, y: Tensor) -> Tensor:
        """What several memories make of the map, no further from it than the moved state is from `reduce` of it.

        Each alone stays within that, but not their sum, which would grow from frame to frame.
        """
        if x.state is None:
            return y
        moved, inside = x.moved
        most = self.layer.spread((moved - inside * self.layer.reduce(x.map, moved)).abs().to(y.dtype))
        return torch.minimum(torch.maximum(y, x.map - most), x.map + most)
