"""Names of conditions such as `rain-night-singapore`, and the weather that they stand for.

`clear-day-boston/rain-day-boston` is a drive that starts under the first and ends under the second.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from perception.errors import InputError
from perception.frame import Conditions
from perception.simulate.snapshot import Weather

Phases = tuple[Conditions, ...]  # successive conditions of one drive, all in one city

WEATHERS, LIGHTS, CITIES = ("clear", "rain", "fog"), ("day", "night"), ("boston", "singapore")
RAIN, FOG = (5.0, 40.0), (40.0, 150.0)  # ranges drawn from: mm/h; m of meteorological optical range


def parse(names: Sequence[str]) -> list[Phases]:
    """The phases of a drive for each name, in order; `all` stands for a drive of every combination.

    Raises:
        InputError: an unknown name, a drive through two cities, or no name at all.
    """
    found: list[Phases] = []
    for name in names:
        if name == "all":
            # All twelve, ordered such that consecutive scenes differ in weather, light and city.
            found += [(_conditions(WEATHERS[n % 3], LIGHTS[(n // 3 + n // 6) % 2], CITIES[n % 2]),) for n in range(12)]
            continue
        phases = tuple(map(_parse_phase, name.split("/")))
        if len({phase["city"] for phase in phases}) > 1:
            raise InputError(f"'{name}': a drive stays in one city; name the same in all its parts")
        found.append(phases)
    if not found:
        raise InputError("no conditions given: name at least one, such as clear-day-boston, or all")
    return found


def _parse_phase(name: str) -> Conditions:
    values = name.split("-")
    if len(values) != 3 or any(v not in known for v, known in zip(values, (WEATHERS, LIGHTS, CITIES), strict=True)):
        raise InputError(
            f"unknown condition '{name}': write weather-light-city with one of "
            f"{', '.join(WEATHERS)}; {', '.join(LIGHTS)}; {', '.join(CITIES)}, or all; "
            "with / between them where a drive changes"
        )
    return _conditions(*values)


def _conditions(weather: str, light: str, city: str) -> Conditions:
    return Conditions(weather=weather, light=light, city=city)


def draw_weather(conditions: Conditions, rng: np.random.Generator) -> Weather:
    """Random rain rate and visibility of these conditions."""
    rain, fog = float(rng.uniform(*RAIN)), float(rng.uniform(*FOG))
    return Weather(
        rain=rain if conditions["weather"] == "rain" else 0.0,
        visibility=fog if conditions["weather"] == "fog" else np.inf,
        night=conditions["light"] == "night",
    )


def split(conditions: Sequence[Phases]) -> tuple[list[int], list[int]]:
    """Scene numbers for training and validation, about 3 : 1, with the same conditions in both where possible."""
    if len(conditions) < 2:
        return list(range(len(conditions))), []
    remaining: dict[Phases, list[int]] = {}
    for number, phases in enumerate(conditions):
        remaining.setdefault(phases, []).append(number)
    validation: list[int] = []
    target = max(1, round(len(conditions) / 4))
    while len(validation) < target:
        repeated = [scenes for scenes in remaining.values() if len(scenes) > 1]
        pool = repeated or [scenes for scenes in remaining.values() if scenes]
        count = min(target - len(validation), len(pool))
        stride = len(pool) / count
        for k in range(count):  # spread evenly over the pool
            shift = k % 2 if stride >= 2 else 0  # cities alternate in the pool, so odd steps keep both
            validation.append(pool[(int((k + 0.5) * stride) + shift) % len(pool)].pop())
    return [n for n in range(len(conditions)) if n not in validation], sorted(validation)
