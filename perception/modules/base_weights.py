"""The base: the tensors that are the network's own, neither its modules' nor a router's nor an added task's."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import nn


def is_own(key: str) -> bool:
    """Whether a tensor with this key of the state is the network's own."""
    beside = key.startswith(("chooser.", "added."))
    return not beside and ".computations." not in f".{key}" and ".fusions." not in f".{key}"


def own_parameters(network: nn.Module) -> Iterator[nn.Parameter]:
    return (parameter for name, parameter in network.named_parameters() if is_own(name))


def base_hash(network: nn.Module) -> str:
    """sha256 over names, types, shapes and bytes of the base's parameters and buffers, in the order of their names.

    It is the same on every device and in every memory format, whatever modules there are.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        if is_own(name):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
