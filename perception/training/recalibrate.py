"""Recomputing the statistics of batch normalisations after a merge."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from perception.frame import Conditions
from perception.model import PerceptionModel
from perception.modules.base_weights import is_own


@torch.no_grad()
def recalibrate(
    model: PerceptionModel,
    frames: Iterable[tuple[dict[str, Tensor], Sequence[Conditions]]],
    module: str | None = None,
) -> None:
    """Recompute the running mean and variance of batch normalisations as averages over these batches.

    Averaged weights shrink the variance of activations (Jordan et al., REPAIR, 2023), while the statistics are still
    those of the weights before. `torch.optim.swa_utils.update_bn` would reset all layers, frozen ones included.

    Args:
        frames: inputs as the model takes them, with the conditions of their frames.
        module: whose own batch normalisations to update; it must run on the frames. None: those of the base, which
            it changes: for a model whose modules are merged or folded.
    """
    layers = [layer for name, layer in model.named_modules() if name and is_own(f"{name}.")]
    if module is not None:
        model.bank.require([module])
        layers = [layer for computation in model.bank.at(module).values() for layer in computation.modules()]
    norms: list[Any] = [layer for layer in layers if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    mode, momenta = model.training, [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # averages over all batches

    def learn(*_: Any) -> None:
        for norm in norms:
            norm.train()

    hook = model.register_forward_pre_hook(learn)  # after the bank's, which holds what is frozen in evaluation mode
    for inputs, conditions in frames:
        model(inputs, conditions)
    hook.remove()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.train(mode)
