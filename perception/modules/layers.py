"""Layers of the network, with slots."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn

from perception.modules.computation.computation import LAYERS
from perception.modules.slot import Slot


class ConvBlock(nn.Module):
    """Convolution, batch normalisation, ReLU: (B, I, H, W) -> (B, O, H / stride, W / stride).

    The slot of the convolution is `name`, that of the normalisation `name.norm`.
    """

    def __init__(self, name: str, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, up: int = 1) -> None:
        super().__init__()
        layer: nn.Module
        if up > 1:  # each cell becomes up x up cells
            layer = nn.ConvTranspose2d(inputs, outputs, up, up, bias=False)
        else:
            layer = nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, bias=False)
        self.conv = Slot(name, layer)
        self.norm = Slot(f"{name}.norm", nn.BatchNorm2d(outputs, eps=1e-3))
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.conv(x)))
        return x


def add_slots(
    network: nn.Module,
    prefix: str = "",
    patterns: Sequence[str] = ("*",),
    kinds: Sequence[type[nn.Module]] = LAYERS,
) -> None:
    """Wrap the layers of these kinds in a foreign network in slots, named by their paths after the prefix.

    A layer that occurs several times gets one slot, named by its first path. Subclasses of the kinds get none, because
    they may compute something else.
    """
    made: dict[int, Slot] = {}
    for path, parent in list(network.named_modules(prefix=prefix)):
        for name, child in list(parent.named_children()) if not isinstance(parent, Slot) else ():
            full = f"{path}.{name}" if path else name
            if type(child) in kinds and any(fnmatchcase(full, pattern) for pattern in patterns):
                setattr(parent, name, made.setdefault(id(child), Slot(full, child)))
