"""How large the tolerances of a network may be, by precision: an export beyond them is refused."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from deploy.tolerances import Precision, Ranked, Size, Spread, Tolerances
from perception.io.section import Section, Share
from perception.tasks.task import Output, Task


class Bounds(Section):
    """The least or the largest tolerances of any network."""

    ranked: Ranked
    cells: Spread  # of a dense output with cells, in probability
    unsteady: Size  # of a dense output that is not `steady`, in probability
    labels: Share  # of an output of class indices

    def dense(self, output: Output) -> Spread:
        """Bounds for each channel of a dense output."""
        if output.steady and output.cells:
            return self.cells
        return Spread(each=self.ranked.score.each if output.steady else self.unsteady, mean=0)

    @property
    def state(self) -> float:
        """Bound for the state of a network with a memory, which may differ as much as its scores."""
        return self.ranked.score.each

    def all(self, tasks: Mapping[str, Task[Any]], remembers: bool = False) -> Tolerances:
        """Bounds for the outputs of these tasks, and for the state of a network with a memory."""
        return Tolerances(
            ranked={name: self.ranked for name, task in tasks.items() if task.ranked},
            dense={
                name: dict.fromkeys(output.channels, self.dense(output))
                for name, output in dense_outputs(tasks).items()
            },
            labels={name: self.labels if out.cells else 1.0 for name, out in label_outputs(tasks).items()},
            state=self.state if remembers else None,
        )


def dense_outputs(tasks: Mapping[str, Task[Any]]) -> dict[str, Output]:
    return {name: output for name, output in _unranked_outputs(tasks).items() if not output.labels}


def label_outputs(tasks: Mapping[str, Task[Any]]) -> dict[str, Output]:
    return {name: output for name, output in _unranked_outputs(tasks).items() if output.labels}


def _unranked_outputs(tasks: Mapping[str, Task[Any]]) -> dict[str, Output]:
    """Outputs that are no lists of detections."""
    every = ((name, task, output) for name, task in tasks.items() for output in task.outputs)
    return {f"{name}/{output.name}": output for name, task, output in every if not task.ranked}


def _bounds(
    score: Pair, box: Pair, heading: Pair, velocity: Pair, cells: Pair, lost: float, unsteady: float, labels: float
) -> Bounds:
    score_, box_, heading_, velocity_, cells_ = (
        Spread(each=each, mean=mean) for each, mean in (score, box, heading, velocity, cells)
    )
    ranked = Ranked(score=score_, center=box_, size=box_, heading=heading_, velocity=velocity_, lost=lost)
    return Bounds(ranked=ranked, cells=cells_, unsteady=unsteady, labels=labels)


Pair = tuple[float, float]
# Engines in FP32 may always differ by the least. A network that multiplies rounding errors has greater tolerances.
LEAST = _bounds((1e-4, 1e-4), (1e-3, 1e-3), (1e-3, 1e-3), (1e-3, 1e-3), (1e-4, 1e-3), 0, 1e-4, 1e-4)
# The largest tolerances that an export writes. FP32 and FP16 are compared with torch. INT8 is compared with its own
# graph, but a value that rounds the other way in one layer changes others in the next, so that engines end up a
# quantisation step apart: single detections may differ a lot, but their mean may not, nor may a probability turn over.
BOUNDS: Mapping[Precision, Bounds] = MappingProxyType(
    {
        "fp32": _bounds((1e-3, 1e-3), (1e-2, 2e-3), (1e-2, 2e-3), (1e-2, 2e-3), (1e-3, 2e-3), 0, 1e-3, 2e-3),
        "fp16": _bounds((0.04, 0.02), (0.1, 0.02), (0.2, 0.02), (0.1, 0.02), (0.1, 0.02), 0.02, 0.04, 0.02),
        "int8": _bounds((0.25, 0.08), (0.6, 0.15), (0.6, 0.15), (0.8, 0.2), (0.6, 0.2), 0.1, 0.5, 0.25),
    }
)
