"""A head for training alone, which finds the objects of the frame before in the state of a memory.

Historical object prediction, HoP (Zong et al., "Temporal enhanced training of multi-view 3D object detector via
historical object prediction", ICCV 2023), for one dense recurrent map.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from perception.errors import InputError
from perception.frame import Boxes
from perception.geometry import inverse
from perception.model import PerceptionModel
from perception.modules.computation.memory import FusedMap
from perception.modules.layers import ConvBlock
from perception.tasks.network import Loss
from perception.tasks.task import add_prefix

HISTORY = "history"  # name of the labels and of the loss terms, beside those of the tasks
TASK = "detection"
_LAYERS = 3  # of 3 x 3 cells before the head's own: what moves is some cells from where it was


def move_back(boxes: Boxes, current_from_previous: np.ndarray, elapsed: float) -> Boxes:
    """Where the objects of a frame were in the frame before, in its reference frame.

    Each has moved with its velocity, so this needs no annotation of the frame before. One of unknown velocity counts
    as at rest.

    Args:
        current_from_previous: (4, 4), of points at rest.
        elapsed: s since the frame before.
    """
    before = replace(boxes, centers=boxes.centers - np.nan_to_num(boxes.velocities) * elapsed)
    return before.transformed(inverse(current_from_previous.astype(np.float64)))


def history_weight(model: PerceptionModel) -> float:
    """The weight of the head's losses; 0: there is none."""
    parts = [part for module in model.config.modules for part in module.single() if part.kind == "memory"]
    return max((part.history for part in parts), default=0.0)


class HistoryHead(nn.Module):
    """The state of a frame, moved back to the frame before -> losses of the objects there.

    It is no part of the model: no checkpoint and no graph has it. A training that goes on with a checkpoint begins it
    anew.

    Args:
        model: with a memory and detection.
        weight: of its losses.
    """

    def __init__(self, model: PerceptionModel, weight: float) -> None:
        super().__init__()
        if TASK not in model.tasks or model.config.model.fused_stride != model.config.model.trunk.stride:
            raise InputError("history: needs detection, and a trunk whose outputs have the cells of the fused map")
        self.weight = weight
        self._layer = [cast(FusedMap, model.memory.layer)]  # in a list, because it stays a layer of the model alone
        channels = model.config.model.fused_channels
        # The base of a seed must not depend on whether this head is there.
        with torch.random.fork_rng(devices=[]):
            self.before = nn.Sequential(*(ConvBlock(f"{HISTORY}.{i}", channels, channels) for i in range(_LAYERS)))
            self.head = model.tasks[TASK].network(channels)

    def losses(self, state: Tensor, inputs: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> dict[str, Loss]:
        """Loss terms, history/TERM; of frames whose memory has a frame before.

        Args:
            state: (B, C, rows, columns) the network's `next_state`.
            inputs: of the network.
            labels: of detection, a batch, for the boxes of `move_back`.
        """
        moved, _ = self._layer[0].warp(state, _inverse(inputs["current_from_previous"]))
        valid = inputs["state_valid"]
        terms = self.head.losses(self.head(self.before(moved)), labels)
        weighted = {name: Loss(self.weight * valid * term.sums, valid * term.counts) for name, term in terms.items()}
        return add_prefix(HISTORY, weighted)


def _inverse(motion: Tensor) -> Tensor:
    """(B, 4, 4) inverse of rigid motions."""
    turned = motion[:, :3, :3].transpose(1, 2)
    found = torch.zeros_like(motion)
    found[:, :3, :3], found[:, :3, 3:], found[:, 3, 3] = turned, -turned @ motion[:, :3, 3:], 1
    return found
