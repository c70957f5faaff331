"""The layers that the network is made of, in slots."""

from __future__ import annotations

from torch import Tensor, nn

from perception.modules.computation.computation import LAYERS
from perception.modules.slot import Slot


class ConvBlock(nn.Module):
    """Convolution, batch normalisation, ReLU: (B, I, H, W) -> (B, O, H / stride, W / stride).

    The convolution's slot is called `name`, the normalisation's `name.norm`.
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


def slotted(network: nn.Module, prefix: str) -> None:
    """Wrap every convolution, normalisation and linear layer of a foreign network in a slot, named after its path."""
    for name, child in list(network.named_children()):
        if type(child) in LAYERS:
            setattr(network, name, Slot(f"{prefix}.{name}", child))
        elif not isinstance(child, Slot):
            slotted(child, f"{prefix}.{name}")
