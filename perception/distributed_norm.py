"""Batch normalisation over the processes of a training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perception.distributed import total


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
