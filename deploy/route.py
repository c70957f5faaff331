"""Routes: the weight of each module on board, given what is known of a frame. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from perception.errors import InputError
from perception.frame import CONDITION_VALUES, CONDITIONS, Conditions
from perception.section import Section


class Banked(Section):
    """A module in the graph whose weight is part of the input `route`."""

    name: str
    asks: tuple[str, ...]  # facts that must be known of a frame for the module to run


def steering(
    conditions: Conditions, inputs: Mapping[str, np.ndarray], banked: Sequence[Banked], conditional: bool
) -> dict[str, np.ndarray]:
    """The inputs that steer the network for a frame: `route`, and `conditions` where modules read them.

    Args:
        conditions: what is known of the frame.
        inputs: its sensors' inputs, as `prepare` makes them; zeros where a sensor is missing.
        banked: the modules in the order of the input.
        conditional: whether the network has an input `conditions`.
    """
    known = {*conditions.known()}
    if "pillar_counts" in inputs:
        known.add("lidar" if inputs["pillar_counts"].any() else "no-lidar")
    if "image_from_reference" in inputs:
        known.add("cameras" if inputs["image_from_reference"].any() else "no-cameras")
    steer = {}
    if banked:
        steer["route"] = np.array([[known.issuperset(module.asks) for module in banked]], np.float32)
    if conditional:
        steer["conditions"] = np.array([[value in known for value in CONDITION_VALUES]], np.float32)
    return steer


def parse_conditions(values: Sequence[str]) -> Conditions:
    """Conditions of values such as ("rain", "boston"); InputError on an unknown or a contradictory one."""
    chosen: dict[str, str] = {}
    for value in values:
        kind = next((kind for kind, known in CONDITIONS.items() if value in known), None)
        if kind is None:
            raise InputError(f"{value}: unknown condition; choose from {', '.join(CONDITION_VALUES)}")
        if chosen.setdefault(kind, value) != value:
            raise InputError(f"{value}: contradicts {chosen[kind]}; give one {kind}")
    return Conditions(**chosen)


def named(route: Sequence[str]) -> str:
    """The name of a route: boston+rain for ("boston", "rain"), base without conditions."""
    return "+".join(route) or "base"


def facts(name: str) -> frozenset[str]:
    """The conditions in a route's name: {"boston", "rain"} for boston+rain; the inverse of `named`."""
    return frozenset(name.split("+")) - {"base"}
