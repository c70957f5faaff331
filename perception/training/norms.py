"""Batch normalisations in training: their momentum, and statistics over several processes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from timm.layers import convert_sync_batchnorm
from torch import nn

from perception.distributed import DistributedNorm


def set_momentum(model: nn.Module, momentum: float) -> None:
    """Set the weight of a batch in the running statistics of all batch normalisations."""
    for layer in model.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.momentum = momentum


class Place(NamedTuple):
    """Where a layer is."""

    parent: nn.Module
    name: str
    layer: nn.Module


def synchronise(model: nn.Module) -> list[Place]:
    """Let all batch normalisations compute their statistics over all processes, which then run them equally often.

    Returns the layers that were replaced; those in their place have the same parameters and statistics.
    """
    places = [
        Place(parent, name, layer)
        for parent in model.modules()
        for name, layer in parent.named_children()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm)
    ]
    if next(model.parameters()).is_cuda:
        # timm's layers may have an activation in the normalisation, which torch's conversion would lose.
        convert_sync_batchnorm(model)
    else:
        for parent, name, layer in places:
            setattr(parent, name, DistributedNorm(layer))
    return places


def put_back(places: Iterable[Place]) -> None:
    """Undo `synchronise`."""
    for parent, name, layer in places:
        setattr(parent, name, layer)
