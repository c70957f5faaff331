"""Routes: which modules of a network run, given what is known about a frame. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from perception.errors import InputError
from perception.frame import Conditions
from perception.io.section import Section
from perception.sensors.inputs import presence_inputs, seen_sensors
from perception.taxonomy import Taxonomy


class BankedModule(Section):
    """A module in the graph whose weight is part of the input `route`."""

    name: str
    asks: tuple[str, ...]  # facts that a frame must have for the module to run


def steering_inputs(
    conditions: Conditions, inputs: Mapping[str, np.ndarray], banked: Sequence[BankedModule], values: Sequence[str]
) -> dict[str, np.ndarray]:
    """The network's inputs `route` and, if its modules read conditions, `conditions` for a frame.

    The banked modules are in the order of the input `route`, the values in that of `conditions`; without it there are
    none. In the sensors' inputs, of `prepare`, a missing sensor is zeros.
    """
    seen, takes = seen_sensors(inputs), {sensor for sensor, name in presence_inputs().items() if name in inputs}
    known = {*conditions.known(), *seen, *(f"no-{sensor}" for sensor in takes - seen)}
    steer = {}
    if banked:
        steer["route"] = np.array([[known.issuperset(module.asks) for module in banked]], np.float32)
    if values:
        steer["conditions"] = np.array([[value in known for value in values]], np.float32)
    return steer


def parse_conditions(values: Sequence[str], taxonomy: Taxonomy) -> Conditions:
    """Parse values such as ("rain", "night"). InputError if one is unknown or contradicts another."""
    chosen: dict[str, str] = {}
    for value in values:
        kind = taxonomy.kind_of(value)
        if chosen.setdefault(kind, value) != value:
            raise InputError(f"{value}: contradicts {chosen[kind]}; give one {kind}")
    return Conditions(**{kind: chosen.get(kind) for kind in taxonomy.conditions})


def route_name(route: Sequence[str]) -> str:
    """The name of a route: rain+night for ("rain", "night"), base without conditions."""
    return "+".join(route) or "base"


def route_conditions(name: str) -> frozenset[str]:
    """The conditions in a route's name: {"rain", "night"} for rain+night; the inverse of `route_name`."""
    return frozenset(name.split("+")) - {"base"}
