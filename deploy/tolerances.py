"""Tolerances of an engine's outputs for a golden frame, by quantity, and their bounds by precision. No torch here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from perception.errors import InputError
from perception.io.section import Section, Share
from perception.tasks.task import Output, Task

Precision = Literal["fp32", "fp16", "int8"]
Size = Annotated[float, Field(ge=0, allow_inf_nan=False)]
REMEDY = "export the bundle again"


class Spread(Section):
    """The difference of one quantity between two engines, or its tolerance."""

    each: Size  # in any single detection or cell
    mean: Size  # over all that are compared, where rounding errors cancel and errors of a wrong network do not


class Ranked(Section):
    """The tolerances of a list of detections. Labels and attributes must be equal for two detections to match."""

    score: Spread  # probability, of the sorted scores; mean: share of the mean score
    center: Spread  # m
    size: Spread  # share of each side's length
    heading: Spread  # of sine and cosine of the yaw, in median lengths of these vectors; longer ones are cut to 1
    velocity: Spread  # m/s
    lost: Size  # share of the compared detections that may have no match, but must have one of their class around

    def spreads(self) -> Iterator[tuple[str, Spread]]:
        for name in ("score", "center", "size", "heading", "velocity"):
            yield name, getattr(self, name)


class Tolerances(Section):
    """The tolerances of all outputs of a network."""

    ranked: dict[str, Ranked]  # by task
    dense: dict[str, dict[str, Spread]]  # by output and channel; mean: share of the channel's mean
    labels: dict[str, Share] = Field(default={})  # by output of class indices: share of the elements that may differ
    state: Size | None = None  # of a network with a memory: as of `golden.state_difference`

    @model_serializer(mode="wrap")
    def _without_unused(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Networks without such outputs keep the manifest that they had before there were any."""
        unused: dict[str, Any] = {"labels": {}, "state": None}
        return {name: content for name, content in serialize(self).items() if unused.get(name, ...) != content}

    def numbers(self) -> Iterator[tuple[str, float]]:
        """Every number with its name, such as detection.center.each."""
        for task, ranked in self.ranked.items():
            for name, spread in ranked.spreads():
                yield from ((f"{task}.{name}.each", spread.each), (f"{task}.{name}.mean", spread.mean))
            yield f"{task}.lost", ranked.lost
        for output, channels in self.dense.items():
            for channel, spread in channels.items():
                yield from ((f"{output}.{channel}.each", spread.each), (f"{output}.{channel}.mean", spread.mean))
        yield from self.labels.items()
        if self.state is not None:
            yield "state", self.state


class Bounds(Section):
    """The least or the largest tolerances of any network."""

    ranked: Ranked
    cells: Spread  # of a dense output with cells, in probability
    unsteady: Size  # of a dense output that is not `steady`, in probability
    labels: Share  # of an output of class indices

    def dense(self, output: Output) -> Spread:
        """Of each channel of a dense output."""
        if output.steady and output.cells:
            return self.cells
        return Spread(each=self.ranked.score.each if output.steady else self.unsteady, mean=0)

    @property
    def state(self) -> float:
        """Of the state of a network with a memory, which may differ as much as its scores."""
        return self.ranked.score.each

    def all(self, tasks: Mapping[str, Task[Any]], remembers: bool = False) -> Tolerances:
        """Of the outputs of these tasks, and of the state of a network with a memory."""
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
    """Outputs of probabilities, TASK/NAME."""
    return {name: output for name, output in _unranked_outputs(tasks).items() if not output.labels}


def label_outputs(tasks: Mapping[str, Task[Any]]) -> dict[str, Output]:
    """Outputs of class indices, TASK/NAME."""
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
# The largest tolerances that a manifest may have. FP32 and FP16 are compared with torch. INT8 is compared with its own
# graph, but a value that rounds the other way in one layer changes others in the next, so that engines end up a
# quantisation step apart: single detections may differ a lot, but their mean may not, nor may a probability turn over.
BOUNDS: Mapping[Precision, Bounds] = MappingProxyType(
    {
        "fp32": _bounds((1e-3, 1e-3), (1e-2, 2e-3), (1e-2, 2e-3), (1e-2, 2e-3), (1e-3, 2e-3), 0, 1e-3, 2e-3),
        "fp16": _bounds((0.04, 0.02), (0.1, 0.02), (0.2, 0.02), (0.1, 0.02), (0.1, 0.02), 0.02, 0.04, 0.02),
        "int8": _bounds((0.25, 0.08), (0.6, 0.15), (0.6, 0.15), (0.8, 0.2), (0.6, 0.2), 0.1, 0.5, 0.25),
    }
)


def require_bounded(
    tolerances: Tolerances, precision: Precision, tasks: Mapping[str, Task[Any]], where: str, remembers: bool = False
) -> None:
    """Raise InputError if a tolerance exceeds the bounds of this precision, or an output has none.

    Args:
        remembers: whether the network has a memory.
    """
    bounds = dict(BOUNDS[precision].all(tasks, remembers).numbers())
    found = dict(tolerances.numbers())
    if wrong := sorted(bounds.keys() ^ found.keys()):
        raise InputError(f"{where}: has {'no' if wrong[0] in bounds else 'an unknown'} tolerance {wrong[0]}; {REMEDY}")
    if [*found] != [*bounds]:
        raise InputError(f"{where}: has tolerances in another order than its outputs; {REMEDY}")
    for name, number in found.items():
        if number > bounds[name]:
            raise InputError(
                f"{where}: tolerance {name} is {number:g}, in {precision} at most {bounds[name]:g}; {REMEDY}"
            )
