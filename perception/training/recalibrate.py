"""Statistics of batch normalisations after a merge."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from perception.frame import Conditions
from perception.model import PerceptionModel
from perception.modules.base import is_own


@torch.no_grad()
def recalibrate(model: PerceptionModel, frames: Iterable[tuple[dict[str, Tensor], Sequence[Conditions]]]) -> None:
    """Estimate the running mean and variance of the base's batch normalisations anew, averages over these batches.

    Averaged weights shrink the variance of what they compute (Jordan et al., REPAIR, 2023), while the statistics are
    still those of the weights before. Meant for a model whose modules are merged or folded: it changes the base.

    Args:
        frames: inputs as the model takes them, with the conditions of their frames.
    """
    layers = [layer for name, layer in model.named_modules() if name and is_own(f"{name}.")]
    norms: list[Any] = [layer for layer in layers if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    mode, momenta = model.training, [norm.momentum for norm in norms]
    frozen = [p for p in model.parameters() if not p.requires_grad]
    model.eval().requires_grad_(True)  # the bank holds the normalisations of a frozen base in evaluation mode
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # averages over all batches
        norm.train()
    for inputs, conditions in frames:
        model(inputs, conditions)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for parameter in frozen:
        parameter.requires_grad_(False)
    model.train(mode)
