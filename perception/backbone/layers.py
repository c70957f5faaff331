"""The convolution that the network is made of."""

from __future__ import annotations

from torch import Tensor, nn

from perception.modules.slot import Slot


class ConvBlock(nn.Module):
    """Convolution at a slot, batch normalisation, ReLU: (B, I, H, W) -> (B, O, H / stride, W / stride)."""

    def __init__(self, slot: str, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, up: int = 1) -> None:
        super().__init__()
        layer: nn.Module
        if up > 1:  # each cell becomes up x up cells
            layer = nn.ConvTranspose2d(inputs, outputs, up, up, bias=False)
        else:
            layer = nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, bias=False)
        self.conv = Slot(slot, layer)
        self.norm = nn.BatchNorm2d(outputs, eps=1e-3)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.conv(x)))
        return x
