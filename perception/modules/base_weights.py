"""The base: the tensors of a network except those of modules, of a learned router and of added heads."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import nn


def is_base_key(key: str) -> bool:
    """Whether this key of the `state_dict` belongs to the base."""
    other = key.startswith(("chooser.", "added."))
    return not other and ".computations." not in f".{key}" and ".fusions." not in f".{key}"


def base_parameters(network: nn.Module) -> Iterator[nn.Parameter]:
    return (parameter for name, parameter in network.named_parameters() if is_base_key(name))


def base_hash(network: nn.Module) -> str:
    """sha256 over names, types, shapes and bytes of the base's parameters and buffers, sorted by name.

    Independent of device, memory format and modules.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        if is_base_key(name):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
