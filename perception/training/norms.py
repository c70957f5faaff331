"""Batch normalisations in training: their momentum, and statistics over several processes."""

from __future__ import annotations

from timm.layers import convert_sync_batchnorm
from torch import nn


def set_momentum(model: nn.Module, momentum: float) -> None:
    """Set the weight of a batch in the running statistics of all batch normalisations."""
    for layer in model.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.momentum = momentum


def synchronise(model: nn.Module) -> None:
    """Let all batch normalisations compute their statistics over all processes; needs GPUs.

    timm's layers may have an activation in the normalisation, which torch's conversion would lose.
    """
    convert_sync_batchnorm(model)
