"""A branch of the network: the inputs of one kind of sensor to a BEV feature map."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from perception.loss import Loss


class SensorNetwork(nn.Module):
    """Attributes:
    channels: of the map.
    stride: side of the map's cells, in pillars.
    """

    channels: int
    stride: int = 1

    def forward(self, inputs: Mapping[str, Tensor], training: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        """The map (B, C, rows, columns), and what `losses` needs besides.

        Args:
            training: whether frames that lack the sensor are left out of statistics.
        """
        raise NotImplementedError

    def load_pretrained(self) -> None:
        """Load the weights with which the configuration says that a training begins; modules stay."""

    def supervision(self) -> Any:
        """What `Sensor.labels` needs to know for the losses of the current parameters; None if there are none."""
        return None

    def losses(self, dense: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> dict[str, Loss]:
        """Loss terms by name, of a branch with `supervision`."""
        raise NotImplementedError
