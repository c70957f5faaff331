"""The processes of a training: what they compute together, and random numbers that do not depend on their number.

All functions are collective: each process calls them equally often, in the same order. With one process they return
its own values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist


def processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process; that of the main process is 0."""
    return dist.get_rank() if processes() > 1 else 0


class _Total(torch.autograd.Function):
    """A sum over processes; its gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        values = values.contiguous().clone()
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].contiguous().clone()
        dist.all_reduce(gradient)
        return gradient


def total(values: Tensor) -> Tensor:
    """The sum over all processes, with gradients to each."""
    if processes() == 1:
        return values
    summed: Tensor = _Total.apply(values)
    return summed


def mean(values: Tensor) -> Tensor:
    return total(values) / processes()


def largest(value: int, device: torch.device) -> int:
    """The largest of the values of all processes, which exchange it on this device."""
    if processes() == 1:
        return value
    values = torch.tensor(value, device=device)
    dist.all_reduce(values, dist.ReduceOp.MAX)
    return int(values)


def gather(values: Tensor) -> Tensor:
    """(B, ...) of this process -> (processes * B, ...) of all, in the order of their frames; without gradients."""
    if processes() == 1:
        return values
    parts = [torch.empty_like(values) for _ in range(processes())]
    dist.all_gather(parts, values.contiguous())
    return torch.cat(parts)


def local_part(values: Tensor) -> Tensor:
    """(processes * B, ...) -> (B, ...), this process's part of what `gather` returns."""
    return values.chunk(processes())[rank()]


def draw_locally(draw: Callable[[int], Tensor], frames: int) -> Tensor:
    """(frames, ...) random numbers for the frames of this process.

    Each process draws for the frames of all and takes its own, so that the numbers of a frame are those of a training
    with one process, and the random state stays the same in all.

    Args:
        draw: number of frames B -> (B, ...).
    """
    return local_part(draw(processes() * frames))
