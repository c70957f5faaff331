"""Recomputes the running statistics of batch normalisations after a merge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from perception.datasets.keyframes import Keyframes
from perception.errors import InputError
from perception.model import PerceptionModel
from perception.modules.base_weights import is_base_key
from perception.sensors.inputs import InputSpec, prepare
from perception.training.loader import batch_inputs


@torch.no_grad()
def recalibrate(model: PerceptionModel, tables: Keyframes, tokens: Sequence[str], module: str | None = None) -> None:
    """Recompute the running mean and variance of batch normalisations in place, as averages over these keyframes.

    Merged weights have other activations than the ones that the statistics were computed for (Jordan et al., REPAIR,
    2023). `torch.optim.swa_utils.update_bn` does not fit: it resets the normalisations of frozen parts as well, passes
    no conditions to the model, and the hook of `Freeze` would put the layers back into evaluation mode.

    Args:
        module: update the batch normalisations of this module, which must run on the frames. None: those of the base,
            for a model whose modules are merged or folded.

    Raises:
        InputError: there are none.
    """
    layers = [layer for name, layer in model.named_modules() if name and is_base_key(f"{name}.")]
    if module is not None:
        model.bank.require([module])
        layers = [layer for computation in model.bank.at(module).values() for layer in computation.modules()]
    norms: list[Any] = [layer for layer in layers if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        raise InputError(f"{module or 'the base'}: no batch normalisation to recalibrate")
    mode, momenta = model.training, [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average

    def update_statistics(*_: Any) -> None:
        for norm in norms:
            norm.train()

    hook = model.register_forward_pre_hook(update_statistics)  # runs after the hook of `Freeze`
    spec = InputSpec.of(model.config)
    for token in tokens:
        frame = tables.frame(token, spec.reads)
        model(batch_inputs([prepare(frame, spec)]), [frame.conditions])
    hook.remove()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.train(mode)
