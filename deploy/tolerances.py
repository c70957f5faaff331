"""How far an engine's outputs for a golden frame may be off: by quantity, and bounded by precision. No torch here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from perception.errors import InputError
from perception.section import Section

Precision = Literal["fp32", "fp16", "int8"]
Size = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Spread(Section):
    """Of one quantity."""

    each: Size  # in any one detection, or cell of the map
    mean: Size  # of all that are compared, where errors of rounding cancel and those of a wrong network do not


class Tolerances(Section):
    """Labels and attributes have none: they are equal, or the detection has no counterpart."""

    score: Spread  # probability, of the sorted scores; mean: share of the mean score
    center: Spread  # m
    size: Spread  # share of each side's length
    heading: Spread  # rad
    velocity: Spread  # m/s
    map: tuple[Spread, ...]  # of each class: probability at a cell; mean: share of the class's mean probability
    recognised: Size  # probability of a condition
    lost: Size  # share of the detections compared that may have no counterpart

    def numbers(self) -> Iterator[tuple[str, float]]:
        """Every number with its name, such as center.each; of the map the largest of the classes."""
        for name in ("score", "center", "size", "heading", "velocity"):
            spread: Spread = getattr(self, name)
            yield from ((f"{name}.each", spread.each), (f"{name}.mean", spread.mean))
        yield "map.each", max((spread.each for spread in self.map), default=0)
        yield "map.mean", max((spread.mean for spread in self.map), default=0)
        yield from (("recognised", self.recognised), ("lost", self.lost))


REMEDY = "export the bundle again"


def _bound(
    score: Pair, meters: Pair, heading: Pair, velocity: Pair, cell: Pair, recognised: float, lost: float
) -> Tolerances:
    score_, meters_, heading_, velocity_, cell_ = (
        Spread(each=each, mean=mean) for each, mean in (score, meters, heading, velocity, cell)
    )
    return Tolerances(
        score=score_, center=meters_, size=meters_, heading=heading_, velocity=velocity_, map=(cell_,),
        recognised=recognised, lost=lost,
    )  # fmt: skip


Pair = tuple[float, float]
# What a manifest may ask for at most. FP32 and FP16 are compared with torch. INT8 is compared with its own graph, but a
# number that rounds the other way in one layer moves others in the next, so that any two engines end up a step of INT8
# apart: single detections may be far off, and their mean may not.
BOUNDS: Mapping[Precision, Tolerances] = MappingProxyType(
    {
        "fp32": _bound((1e-4, 1e-4), (1e-3, 1e-3), (1e-3, 1e-3), (1e-3, 1e-3), (1e-4, 1e-3), 1e-4, 0),
        "fp16": _bound((0.04, 0.02), (0.1, 0.02), (0.2, 0.02), (0.1, 0.02), (0.1, 0.02), 0.04, 0.02),
        "int8": _bound((0.25, 0.08), (0.6, 0.2), (0.6, 0.2), (0.8, 0.4), (0.6, 0.2), 1.0, 0.1),
    }
)


def uniform(most: float, map_classes: int = 6) -> Tolerances:
    """The same number for every quantity, in its unit, and nothing lost."""
    pair = (most, most)
    bound = _bound(pair, pair, pair, pair, pair, most, 0)
    return bound.model_copy(update={"map": bound.map * map_classes})


def exact(outputs: Mapping[str, np.ndarray]) -> Tolerances:
    """What a network in FP32 with such outputs may be off by."""
    classes = outputs["map"].shape[1] if "map" in outputs else 0
    return BOUNDS["fp32"].model_copy(update={"map": BOUNDS["fp32"].map * classes})


def require_bounded(tolerances: Tolerances, precision: Precision, map_classes: int, where: str) -> None:
    """Raise InputError where a tolerance is larger than this precision can need, or the map's are not one a class."""
    if len(tolerances.map) != map_classes:
        raise InputError(f"{where}: has tolerances for {len(tolerances.map)} of {map_classes} map classes; {REMEDY}")
    bounds = dict(BOUNDS[precision].numbers())
    for name, number in tolerances.numbers():
        if number > bounds[name]:
            raise InputError(
                f"{where}: tolerance {name} is {number:g}, in {precision} at most {bounds[name]:g}; {REMEDY}"
            )
