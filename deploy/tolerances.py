"""Tolerances of an engine's outputs for a golden frame, by quantity. No torch here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from perception.io.section import Section, Share

Precision = Literal["fp32", "fp16", "int8"]
Size = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
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
    heading: Spread  # of (sine, cosine) of the yaw, in median lengths of these vectors, at most 1; along and across
    velocity: Spread  # m/s
    lost: Size  # share of the compared detections that may have no match, but must have one of their class around

    def spreads(self) -> Iterator[tuple[str, Spread]]:
        for name in ("score", "center", "size", "heading", "velocity"):
            yield name, getattr(self, name)


class Tolerances(Section):
    """The tolerances of all outputs of a network."""

    ranked: dict[str, Ranked]  # by task
    dense: dict[str, dict[str, Spread]]  # by output and channel; mean: share of the channel's mean
    scales: dict[str, Positive] = Field(default={})  # by output: `Output.scale`, where it is not 1
    labels: dict[str, Share] = Field(default={})  # by output of class indices: share of the elements that may differ
    state: Size | None = None  # of a network with a memory: as of `golden.state_difference`

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
