"""The losses of a model on the frames of a step, which may be divided among processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from accelerate.utils import convert_to_fp32
from torch import Tensor, nn

from perception.distributed import processes, total
from perception.frame import Conditions
from perception.model import PerceptionModel
from perception.tasks.network import Loss


class Losses(nn.Module):
    """Forward pass and loss terms of a model, as one module: the graph of what is returned has all that trains."""

    def __init__(self, model: PerceptionModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, inputs: dict[str, Tensor], conditions: Sequence[Conditions], labels: Mapping[str, Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        """() loss terms by name for the frames of this process.

        The mean of a term over the processes, as of its gradients, is that of the whole batch.
        """
        dense = self.model(inputs, conditions)
        with torch.autocast(next(iter(inputs.values())).device.type, enabled=False):
            terms = self.model.losses(convert_to_fp32(dense), labels)
            of_tasks = [term.each() for name, term in terms.items() if name.split("/")[0] in self.model.tasks]
            costs = torch.stack(of_tasks).sum(dim=0).detach()
            return means(terms) | self.model.routing_losses(costs)


def means(terms: Mapping[str, Loss]) -> dict[str, Tensor]:
    """() parts of this process in the means over the frames of all; their mean over the processes is the term."""
    counts = total(torch.stack([term.counts.sum() for term in terms.values()])).clamp(min=1)
    return {
        name: processes() * term.sums.sum() / count for (name, term), count in zip(terms.items(), counts, strict=True)
    }
