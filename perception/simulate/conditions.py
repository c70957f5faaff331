"""Names of conditions such as `rain-night-singapore`, and what they ask for; `clear-day-boston/rain-day-boston` is a
drive that begins under the first and ends under the second."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from perception.errors import InputError
from perception.frame import CONDITIONS, Conditions
from perception.simulate.scenery import Weather

Parts = tuple[Conditions, ...]  # of a drive that changes on its way, one after the other; all of one city

WEATHERS, LIGHTS, CITIES = CONDITIONS.values()
RAIN, FOG = (5.0, 40.0), (40.0, 150.0)  # mm/h; m of meteorological optical range


def parse(names: Sequence[str]) -> list[Parts]:
    """The conditions of drives with these names, in order; `all` stands for every combination.

    Raises InputError for a name that is none, or a drive through two cities.
    """
    found: list[Parts] = []
    for name in names:
        if name == "all":
            # All twelve, in an order in which a few scenes in a row differ in weather, light and city.
            found += [(Conditions(WEATHERS[n % 3], LIGHTS[(n // 3 + n // 6) % 2], CITIES[n % 2]),) for n in range(12)]
            continue
        parts = tuple(map(_parse_part, name.split("/")))
        if len({part.city for part in parts}) > 1:
            raise InputError(f"'{name}': a drive stays in one city; name the same in all its parts")
        found.append(parts)
    if not found:
        raise InputError("no conditions given: name at least one, such as clear-day-boston, or all")
    return found


def _parse_part(name: str) -> Conditions:
    values = name.split("-")
    if len(values) != 3 or any(v not in known for v, known in zip(values, (WEATHERS, LIGHTS, CITIES), strict=True)):
        raise InputError(
            f"unknown condition '{name}': write weather-light-city with one of "
            f"{', '.join(WEATHERS)}; {', '.join(LIGHTS)}; {', '.join(CITIES)}, or all; "
            "with / between them where a drive changes"
        )
    return Conditions(*values)


def draw_weather(conditions: Conditions, rng: np.random.Generator) -> Weather:
    """Physical magnitudes for these conditions."""
    rain, fog = float(rng.uniform(*RAIN)), float(rng.uniform(*FOG))
    return Weather(
        rain=rain if conditions.weather == "rain" else 0.0,
        visibility=fog if conditions.weather == "fog" else np.inf,
        night=conditions.light == "night",
    )


def split(conditions: Sequence[Parts]) -> tuple[list[int], list[int]]:
    """Scene numbers for training and validation, about 3 : 1; conditions are in both as far as the counts allow."""
    if len(conditions) < 2:
        return list(range(len(conditions))), []
    left: dict[Parts, list[int]] = {}
    for number, condition in enumerate(conditions):
        left.setdefault(condition, []).append(number)
    validation: list[int] = []
    wanted = max(1, round(len(conditions) / 4))
    while len(validation) < wanted:
        several = [scenes for scenes in left.values() if len(scenes) > 1]
        pool = several or [scenes for scenes in left.values() if scenes]
        count = min(wanted - len(validation), len(pool))
        stride = len(pool) / count
        for k in range(count):  # evenly over the pool; the odd step keeps the cities mixed
            shift = k % 2 if stride >= 2 else 0
            validation.append(pool[(int((k + 0.5) * stride) + shift) % len(pool)].pop())
    return [n for n in range(len(conditions)) if n not in validation], sorted(validation)
