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
from perception.modules.route import Route, Routes
from perception.modules.routing.fixed import make_shared_routes

Earlier = Sequence[tuple[dict[str, Tensor], Sequence[Conditions]]]  # inputs and conditions of frames, oldest first


class Losses(nn.Module):
    """Wraps forward pass and losses of a model in one module, so that DDP sees every parameter that trains."""

    def __init__(self, model: PerceptionModel, tasks: Sequence[str]) -> None:
        super().__init__()
        self.model, self.tasks = model, tuple(tasks)
        self.routes: list[Route] = []  # of the last pass

    def forward(
        self,
        inputs: dict[str, Tensor],
        conditions: Sequence[Conditions],
        labels: Mapping[str, Mapping[str, Tensor]],
        earlier: Earlier = (),
    ) -> dict[str, Tensor]:
        """() loss terms by name for the frames of this process.

        The mean of a term over the processes, as of its gradients, is that of the whole batch.

        Args:
            earlier: the frames before. They give the state, and have neither losses nor gradients.
        """
        model, trace = self.model, Trace()
        if "state_valid" in inputs:
            inputs = {**inputs, "state": self._state(len(conditions), fill_clips(inputs, conditions, earlier))}
        dense = model(inputs, conditions, self.tasks, self._routes(inputs, conditions), trace)
        self.routes = trace.routes
        with torch.autocast(next(iter(inputs.values())).device.type, enabled=False):
            terms = model.losses(convert_to_fp32(dense | trace.supervised), labels)
            of_tasks = [term.each() for name, term in terms.items() if name.split("/")[0] in model.tasks]
            costs = torch.stack(of_tasks).sum(dim=0).detach()
            return means(terms) | model.routing_losses(trace.routes, costs)

    @torch.no_grad()
    def _state(self, frames: int, earlier: Earlier) -> Tensor:
        state = self.model.no_state(frames)
        for own, conditions in earlier:
            inputs = {**own, "state": state}
            state = self.model.next_state(inputs, conditions, self._routes(inputs, conditions), Trace())
        return state

    def _routes(self, inputs: dict[str, Tensor], conditions: Sequence[Conditions]) -> Routes | None:
        """The routes of the frames of all processes; None for one process, which has those by conditions."""
        shared = processes() > 1 and self.model.bank.modules
        return make_shared_routes(self.model.bank, inputs, conditions, self.tasks) if shared else None


def fill_clips(inputs: dict[str, Tensor], conditions: Sequence[Conditions], earlier: Earlier) -> Earlier:
    """The earlier frames of this process, as many as those of the process with the longest clips.

    So all processes run the network equally often. Shorter clips begin with their first frames again, as in a batch
    (`training/clips.align_clips`), so that the frames are those of one process with the whole batch.
    """
    first = earlier[0] if earlier else (inputs, conditions)
    missing = largest(len(earlier), inputs["state_valid"].device) - len(earlier)
    return [first] * missing + [*earlier]


def means(terms: Mapping[str, Loss]) -> dict[str, Tensor]:
    """() parts of this process in the means over the frames of all; their mean over the processes is the term."""
    counts = total(torch.stack([term.counts.sum() for term in terms.values()])).clamp(min=1)
    return {
        name: processes() * term.sums.sum() / count for (name, term), count in zip(terms.items(), counts, strict=True)
    }
