"""The exponential moving average (EMA) of a model's weights, which often scores higher than the last weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """A copy of the model whose `update_parameters` moves it by 1 - decay towards the model: average.module.

    The first update copies the weights. Running statistics are averaged, too; integers, such as the counters of batch
    normalisations, are copied. Tensors that do not change keep their bytes.
    """
    average = get_ema_multi_avg_fn(decay)

    def update(own: Any, current: Any, count: Tensor | int) -> None:
        own, current = [*map(_here, own)], [*map(_here, current)]
        if own[0].is_floating_point():
            average(own, current, count)
        else:  # torch's function would round down
            torch._foreach_copy_(own, current)

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)


def _here(value: Tensor) -> Tensor:
    """What this process has of a tensor that may be divided."""
    return value.to_local() if isinstance(value, DTensor) else value
