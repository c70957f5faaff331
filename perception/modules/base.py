"""The base, which is the tensors of a network except those of modules, learned router and added heads; its freezing."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from perception.modules.slot import Slot


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


class Freeze:
    """Freezes base, modules and attentions of Fuse blocks in a network with slots, by `requires_grad`.

    A frozen batch normalisation must be in evaluation mode as well, which `network.train()` in a training loop would
    undo; so a hook sets the modes before each forward pass. Trainable parts have the network's mode.
    """

    def __init__(self, network: nn.Module, slots: Mapping[str, Slot]) -> None:
        self.network, self.slots = network, slots
        self._hook: Any = None

    def base_is_frozen(self) -> bool:
        return not any(parameter.requires_grad for parameter in base_parameters(self.network))

    def keys(self) -> set[str]:
        """Keys of the Fuse blocks whose attention the slots have."""
        return {key for slot in self.slots.values() for key in slot.fusions}

    def train_only(self, names: Collection[str]) -> None:
        """Train only the parts with these names or keys, and put the network into training mode."""
        self.network.train()  # first, as foreign backbones freeze their first stages in `train`
        _freeze(base_parameters(self.network))
        _freeze(parameter for part in self._parts() for parameter in part.parameters())
        for part in self._parts(names):
            part.requires_grad_(True)
        self._set_modes()

    def freeze(self, names: Collection[str]) -> None:
        _freeze(parameter for part in self._parts(names) for parameter in part.parameters())
        self._set_modes()

    def _parts(self, names: Collection[str] | None = None) -> list[nn.Module]:
        """Modules and attentions at all slots, or only those with these names or keys."""
        found = (
            (name, part) for s in self.slots.values() for d in (s.computations, s.fusions) for name, part in d.items()
        )
        return [part for name, part in found if names is None or name in names]

    def _set_modes(self, *_: Any) -> None:
        if self._hook is None:
            self._hook = self.network.register_forward_pre_hook(self._set_modes)
        if self.base_is_frozen():
            for name, layer in self.network.named_modules():
                if name and is_base_key(f"{name}."):
                    layer.training = False
        for part in self._parts():
            part.train(self.network.training and any(parameter.requires_grad for parameter in part.parameters()))


def _freeze(parameters: Iterable[nn.Parameter]) -> None:
    """Freeze parameters and clear their gradients, which an optimizer would still apply."""
    for parameter in parameters:
        parameter.requires_grad_(False).grad = None
