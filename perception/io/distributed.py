"""The processes of a training: what they compute together, and random numbers that do not depend on their number.

All functions are collective: each process calls them equally often, in the same order. With one process they return
its own values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F


def processes() -> int:
    """Number of processes of the training."""
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
    """The mean over all processes, with gradients to each."""
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


class DistributedNorm(nn.modules.batchnorm._BatchNorm):
    """Another batch normalisation, with its parameters and statistics, over the batch of all processes.

    For processors, as torch's needs a GPU. A process may have an empty batch.
    """

    momentum: float
    running_mean: Any
    running_var: Any
    num_batches_tracked: Any

    def __init__(self, layer: Any) -> None:
        super().__init__(layer.num_features, layer.eps, layer.momentum)
        self.weight, self.bias = layer.weight, layer.bias
        self.running_mean, self.running_var = layer.running_mean, layer.running_var
        self.num_batches_tracked = layer.num_batches_tracked
        self.training = layer.training
        # timm's layers have an activation in the normalisation.
        self.activation = nn.Sequential(*(getattr(layer, name) for name in ("drop", "act") if hasattr(layer, name)))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.activation(self._over_all(x) if self.training else self._by_statistics(x))
        return y

    def _by_statistics(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)

    def _over_all(self, x: Tensor) -> Tensor:
        values = x.to(self.weight.dtype)  # in mixed precision that of x is too coarse for sums
        across = [i for i in range(x.ndim) if i != 1]
        shape = (1, -1, *(1,) * (x.ndim - 2))
        amounts = total(torch.cat([values.sum(dim=across), values.new_tensor([x.numel() / x.shape[1]])]))
        count = amounts[-1]
        if count < 2:  # there are no statistics to take
            return self._by_statistics(x)
        mean = amounts[:-1] / count
        centred = values - mean.reshape(shape)
        variance = total(centred.square().sum(dim=across)) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale.reshape(shape) + self.bias.reshape(shape)).to(x.dtype)


SYNCHRONISED = (nn.SyncBatchNorm, DistributedNorm)
