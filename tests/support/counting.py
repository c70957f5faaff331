"""A network with two states: the map of its memory, and a count that has no place and is not moved."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from exported import QUIET, remembering_run
from once import once
from torch import Tensor

from deploy.bundle import Bundle
from deploy.export import export
from perception.model import PerceptionModel


class Counting(PerceptionModel):
    """Counts the frames and the seconds since it began anew; the map's logits grow with the frames."""

    def no_states(self, frames: int) -> dict[str, Tensor]:
        return super().no_states(frames) | {"count": torch.zeros(frames, 2)}

    def forward(self, inputs: dict[str, Tensor], *given: Any, **named: Any) -> dict[str, Tensor]:
        outputs = super().forward(inputs, *given, **named)
        if "count" in inputs:
            seen = torch.stack([torch.ones_like(inputs["elapsed"]), inputs["elapsed"]], dim=1)
            outputs["next_count"] = inputs["state_valid"][:, None] * inputs["count"] + seen
            outputs["map/logits"] = outputs["map/logits"] + 0.1 * outputs["next_count"][:, :1, None, None]
        return outputs


@cache
def counting() -> Bundle:
    """The network of `remembering_run`, which also counts."""

    def make(out: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("perception.checkpoint.PerceptionModel", Counting)
            export(remembering_run(), out, console=QUIET)

    return Bundle.load(once("bundle-counting", make))
