"""The losses of a model on the frames of a step, which may be divided among processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from accelerate.utils import convert_to_fp32
from torch import Tensor, nn

from perception.frame import Conditions
from perception.io.distributed import largest, processes, total
from perception.loss import Loss
from perception.model import PerceptionModel, Trace
from perception.modules.route import Routes
from perception.modules.routing.fixed import make_shared_routes
from perception.training.clips import pad

Frames = Sequence[tuple[dict[str, Tensor], Sequence[Conditions]]]  # inputs and conditions by age, the oldest first


class Losses(nn.Module):
    """Wraps forward pass and losses of a model in one module, so that DDP sees every parameter that trains."""

    def __init__(self, model: PerceptionModel, tasks: Sequence[str]) -> None:
        super().__init__()
        self.model, self.tasks = model, tuple(tasks)

    def forward(self, frames: Frames, labels: Mapping[str, Mapping[str, Tensor]], trace: Trace) -> dict[str, Tensor]:
        """() loss terms by name for the frames of this process.

        The mean of a term over the processes, as of its gradients, is that of the whole batch.

        Args:
            frames: the last ones have the labels. Those before give the state, and have neither losses nor gradients.
            trace: of the last frames. It is no output, because DDP takes all outputs for parts of the loss.
        """
        model, (inputs, conditions) = self.model, frames[-1]
        if "state_valid" in inputs:
            # All processes run the network equally often, as one process with the whole batch does.
            *earlier, _ = pad(frames, largest(len(frames), inputs["state_valid"].device))
            inputs = {**inputs, **self._states(len(conditions), earlier)}
        dense = model(inputs, conditions, self.tasks, self._routes(inputs, conditions), trace, training=True)
        with torch.autocast(next(iter(inputs.values())).device.type, enabled=False):
            terms = model.losses(convert_to_fp32(dense | trace.supervised), labels)
            of_tasks = [term.each() for name, term in terms.items() if name.split("/")[0] in model.tasks]
            costs = torch.stack(of_tasks).sum(dim=0).detach()
            return means(terms) | model.routing_losses(trace.routes, costs)

    @torch.no_grad()
    def _states(self, frames: int, earlier: Frames) -> dict[str, Tensor]:
        states = self.model.no_states(frames)
        for own, conditions in earlier:
            inputs = {**own, **states}
            states = self.model.next_states(inputs, conditions, self._routes(inputs, conditions), training=True)
        return states

    def _routes(self, inputs: dict[str, Tensor], conditions: Sequence[Conditions]) -> Routes | None:
        """The routes of the frames of all processes; None for one process, which has those by conditions."""
        shared = processes() > 1 and self.model.bank.modules
        return make_shared_routes(self.model.bank, inputs, conditions, self.tasks) if shared else None


def means(terms: Mapping[str, Loss]) -> dict[str, Tensor]:
    """() parts of this process in the means over the frames of all; their mean over the processes is the term."""
    counts = total(torch.stack([term.counts.sum() for term in terms.values()])).clamp(min=1)
    return {
        name: processes() * term.sums.sum() / count for (name, term), count in zip(terms.items(), counts, strict=True)
    }
