"""Modules that are memories: their options, and what several in a network share. Without torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field, field_validator

from perception.errors import InputError
from perception.io.section import Positive, Share, Width
from perception.modules.spec import Module, ModuleUnion
from perception.state import Limits

SLOT = "memory"  # name of the only slot where a memory can stand, between `fuse` and `trunk`
SPACING = (0.1, 0.5)  # s from frame to frame in training; random, so that a memory does not learn the data set's alone

Limit = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class MemoryOptions(Module):
    kind: Literal["memory"] = "memory"  # kind of module
    slots: tuple[str, ...] = Field(default=(SLOT,), strict=False)
    hidden: Width = 8  # channels of the gate
    stride: Positive = 1  # side of a cell of the state, in cells of the fused map
    frames: Annotated[int, Field(ge=2)] = 4  # of a training clip, at most
    spacing: tuple[Limit, Limit] = Field(default=SPACING, strict=False)  # s from frame to frame of a clip
    outages: Share = 0.3  # of the steps whose clips end without the LiDAR or the cameras
    seconds: Limit = 1.2  # after which a state is not used
    speed: Limit = 70.0  # m/s of the vehicle, above which a pose is taken as wrong

    @field_validator("spacing")
    @classmethod
    def _in_order(cls, spacing: tuple[float, float]) -> tuple[float, float]:
        if spacing[0] > spacing[1]:
            raise ValueError(f"the least time, {spacing[0]:g} s, is above the largest, {spacing[1]:g} s")
        return spacing


def memories_of(*modules: Module) -> list[MemoryOptions]:
    """The memories among modules and their parts."""
    return [part for module in modules for part in module.single() if isinstance(part, MemoryOptions)]


def limits_of(modules: Iterable[Module]) -> Limits | None:
    """The strictest limits of the memories among a network's modules; None without a memory."""
    memories = memories_of(*modules)
    return Limits(min(m.seconds for m in memories), min(m.speed for m in memories)) if memories else None


def with_spacing(module: Module, spacing: tuple[float, float]) -> Module:
    """The module with the least and the largest time (s) between frames in its training, if it has a memory."""
    if isinstance(module, ModuleUnion):
        return module.model_copy(update={"parts": tuple(with_spacing(part, spacing) for part in module.parts)})
    return module.model_copy(update={"spacing": spacing}) if isinstance(module, MemoryOptions) else module


def require_same_state(spec: Module, others: Iterable[Module]) -> None:
    """Raise InputError if a module would change the state of the other memories: all share its cells and limits."""
    memories = memories_of(*others)
    for part in memories_of(spec) if memories else ():
        for limit in ("seconds", "speed"):
            least = min(getattr(other, limit) for other in memories)
            if getattr(part, limit) < least:
                raise InputError(
                    f"module {spec.name}: with {limit} below {least:g} the memories that are here would forget sooner, "
                    f"since all share a state; give it {limit}={least:g} or more"
                )
        if part.stride != (stride := memories[0].stride):
            raise InputError(
                f"module {spec.name}: it has the stride {part.stride}, the memories that are here have {stride}, and "
                f"all share a state; train it with stride={stride}"
            )
