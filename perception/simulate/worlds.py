"""The parameters of a simulated world, and the world files that set them for each value of a condition."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from perception.errors import InputError
from perception.frame import Conditions
from perception.io.section import Contents, Section, Share, load_section, parse_section
from perception.io.shipped import shipped_files
from perception.simulate.snapshot import GROUND_COLOURS, Ground, Weather
from perception.taxonomy import Colour, Taxonomy, Word, rgb

# The defaults are those of a clear day in a plain town.
LEAST_BLOCK = 50.0  # m along each edge of a block: houses and a parking lot fit
LEAST_STREET = 40.0  # m of lane between two junctions
LEAST_PARKING = 2.5  # m, width of a strip in which trucks stand

Lanes = Annotated[int, Field(ge=1, le=2)]  # per direction


def _both(given: Any) -> Any:
    return (given, given) if isinstance(given, (int, float)) else given


def _within(low: float, high: float) -> AfterValidator:
    def check(given: tuple[float, float]) -> tuple[float, float]:
        if not low <= given[0] <= given[1] <= high:
            raise ValueError(f"{list(given)} is no interval within {low:g} and {high:g}, the lower end first")
        return given

    return AfterValidator(check)


# An interval from which each drive, or each house, draws; one number stands for itself.
_Interval = Annotated[
    tuple[float, float], Field(strict=False), BeforeValidator(_both), Contents(lambda: float | tuple[float, float])
]
Rate = Annotated[_Interval, _within(0, 200)]
Part = Annotated[_Interval, _within(0, 1)]
Sight = Annotated[_Interval, _within(5, 1e5)]
Metres = Annotated[_Interval, _within(3, 200)]


class Streets(Section):
    """A grid of streets, bent and rotated."""

    right_hand: bool = True  # traffic keeps to the right
    # lanes per direction of the streets one way
    columns: tuple[Lanes, ...] = Field(default=(2, 1, 1, 2), strict=False, min_length=3, max_length=8)
    # lanes per direction of the streets across
    rows: tuple[Lanes, ...] = Field(default=(2, 1, 2), strict=False, min_length=3, max_length=8)
    spacing: tuple[float, float] = Field(default=(110.0, 110.0), strict=False)  # m between street centres
    lane_width: Annotated[float, Field(ge=3.0, le=4.0)] = 3.4  # m
    parking: Annotated[float, Field(ge=0, le=4)] = 0.0  # m, parking strip at each kerb; 0 for none
    verge: Annotated[float, Field(ge=0, le=6)] = 0.0  # m of grass between kerb and walkway
    walkway: Annotated[float, Field(ge=2.5, le=6)] = 4.0  # m
    corner: Annotated[float, Field(ge=5, le=10)] = 6.0  # m, kerb radius at junctions
    rotation: Annotated[float, Field(allow_inf_nan=False)] = 0.0  # rad
    bend: tuple[float, float] = Field(default=(6.0, 280.0), strict=False)  # m: amplitude and wavelength
    yellow_divider: bool = False  # the divider between the directions is yellow, not white
    speed: Annotated[float, Field(ge=6, le=12.5)] = 11.0  # m/s, limit
    setback: Annotated[float, Field(ge=0, le=15)] = 2.0  # m of grass in front of the houses
    carparks: Share = 0.5  # of blocks with a parking lot

    @model_validator(mode="after")
    def _require_space(self) -> Streets:
        if len({self.columns[0], self.columns[-1], self.rows[0], self.rows[-1]}) > 1:
            raise ValueError(
                "the outermost of `columns` and `rows` differ in lanes, which end at corners; make them equal"
            )
        if 0 < self.parking < LEAST_PARKING:
            raise ValueError(f"`parking` is {self.parking:g} m wide; trucks need {LEAST_PARKING:g}, or give 0 for none")
        amplitude, wavelength = self.bend
        if not (0 <= amplitude <= 12 and 200 <= wavelength <= 1e4):
            raise ValueError("`bend` is an amplitude up to 12 m and a wavelength of 200 m or more")
        aside = 2 * (self.verge + self.walkway + self.setback)
        for name, spacing, lanes in (("columns", self.spacing[0], self.columns), ("rows", self.spacing[1], self.rows)):
            between = spacing - 2 * (max(lanes) * self.lane_width + self.parking)
            if between - max(aside, 2 * self.corner) < LEAST_BLOCK or between - 2 * self.corner - 13 < LEAST_STREET:
                raise ValueError(f"`spacing`: {spacing:g} m between {name} leave too little for blocks; widen it")
            if spacing > 250:
                raise ValueError(f"`spacing`: {spacing:g} m between {name}; 250 m are the most")
        return self


class Buildings(Section):
    heights: Metres = (8.0, 25.0)  # m
    # colours
    facades: tuple[Colour, ...] = Field(default=("#a85c48", "#beb2a0", "#8c847e"), strict=False, min_length=1)


class Vegetation(Section):
    """Street trees."""

    gap: Annotated[float, Field(ge=5, le=500)] = 15.0  # m
    height: Annotated[float, Field(ge=2, le=10)] = 7.0  # m
    leaves: tuple[Colour, ...] = Field(default=("#345c28", "#406c30"), strict=False, min_length=1)  # colours


class Mix(Section):
    """Shares of the classes in traffic; they are divided by their sum."""

    car: Share = 0.75  # share
    truck: Share = 0.08  # share
    bus: Share = 0.05  # share
    trailer: Share = 0.03  # share
    motorcycle: Share = 0.03  # share
    bicycle: Share = 0.06  # share

    @model_validator(mode="after")
    def _require_cars(self) -> Mix:
        if self.car <= 0:
            raise ValueError("the share of `car` is 0; what cannot be placed becomes a car")
        return self


class Agents(Section):
    """How many agents there are."""

    traffic: Annotated[float, Field(gt=0, le=0.08)] = 0.03  # vehicles per metre of lane
    mix: Mix = Mix()
    walkers: Annotated[float, Field(ge=0, le=0.1)] = 0.02  # per metre of walking path
    cycles: Share = 0.1  # share of free kerb spots with a parked cycle
    people: Share = 0.05  # share of free kerb spots with a person
    parked: Share = 0.75  # share of occupied parking spaces
    motorcycles: Share = 0.4  # share among parked cycles


class Scenery(Section):
    streets: Streets = Streets()
    buildings: Buildings = Buildings()  # houses at the streets
    vegetation: Vegetation = Vegetation()
    agents: Agents = Agents()


class Place(Scenery):
    """A city. All of it is the same in all drives of a log, so that one map serves them."""

    name: str = "town"
    location: str = "town"  # name of the map


class Light(Section):
    night: bool = False  # whether the sun is down
    overcast: bool = False  # as it is in rain, snow and fog anyway


class Air(Section):
    rain: Rate = (0.0, 0.0)  # mm/h
    visibility: Sight | None = None  # m of meteorological optical range; None: unlimited but for rain and snow
    snow: Rate = (0.0, 0.0)  # mm/h of melted water


class Cover(Section):
    """What is on the ground, and its colours without that."""

    wet: Part = (0.0, 0.0)  # share under a film of water, at least; rain makes its own
    snow: Part = (0.0, 0.0)  # share under snow, roofs and trees alike
    grass: Colour | None = None  # colour
    road: Colour | None = None  # colour
    walkway: Colour | None = None  # colour
    carpark: Colour | None = None  # colour


class Surroundings(Section):
    """What may change on a drive."""

    light: Light = Light()  # time of the day
    air: Air = Air()  # rain, snow and fog
    ground: Cover = Cover()

    def draw(self, rng: np.random.Generator) -> Weather:
        """Random rates, visibility and cover. Always as many draws: the rain of a drive does not depend on its fog."""
        rain = float(rng.uniform(*self.air.rain))
        visibility = float(rng.uniform(*(self.air.visibility or (1.0, 1.0))))
        snow, wet, cover = (float(rng.uniform(*each)) for each in (self.air.snow, self.ground.wet, self.ground.snow))
        return Weather(
            rain=rain,
            visibility=np.inf if self.air.visibility is None else visibility,
            snow=snow,
            wet=wet,
            snow_cover=cover,
            night=self.light.night,
            overcast=self.light.overcast,
            ground_colours=tuple(
                GROUND_COLOURS[kind] if (own := getattr(self.ground, kind.name.lower(), None)) is None else rgb(own)
                for kind in Ground
            ),
        )


class WorldFile(Scenery, Surroundings):
    """One file. Only keys that it has count: the values of the others here stand for nothing."""

    kind: Word  # of the condition, such as weather
    location: str | None = None  # of a city: the name of its map, such as munich-west

    @model_validator(mode="after")
    def _require_location(self) -> WorldFile:
        if "streets" in self.model_fields_set and self.location is None:
            raise ValueError("`streets` are a city's, whose file has a `location`; add one, or leave the streets out")
        return self


class Worlds:
    """World files by the values of conditions: of a folder, if one is given, and those that come with the package."""

    def __init__(self, folder: Path | None = None) -> None:
        if folder is not None and not folder.is_dir():
            raise InputError(f"{folder}: no such folder; give one with world files such as munich.yaml")
        self._folder = folder
        own = () if folder is None else folder.glob("*.yaml")
        self._paths = shipped_files("world") | {path.stem: path for path in own}
        self._files: dict[Path, WorldFile] = {}

    def kinds(self) -> dict[str, tuple[str, ...]]:
        """Kind -> the values with a world file. Kinds are in reverse order of the alphabet: weather, light, city."""
        found: dict[str, list[str]] = {}
        for value, path in sorted(self._paths.items()):
            found.setdefault(self._read(path).kind, []).append(value)
        return {kind: tuple(found[kind]) for kind in sorted(found, reverse=True)}

    def compose(self, conditions: Conditions, taxonomy: Taxonomy) -> tuple[Place, Surroundings]:
        """The world under these conditions; kinds that stand earlier in the taxonomy override those later."""
        merged: dict[str, Any] = {}
        for kind in reversed(list(taxonomy.conditions)):
            value = conditions[kind]
            found = self._file(value, kind)
            if found.location is not None:
                if "location" in merged:
                    raise InputError(f"{value} and {merged['name']}: both are cities, with a `location`; keep one")
                merged["name"] = value
            merged = _merge(merged, found.model_dump(exclude_unset=True, exclude={"kind"}))
        where = f"world of {'-'.join(conditions.known())}"
        of_place = {name: part for name, part in merged.items() if name in Place.model_fields}
        changing = {name: part for name, part in merged.items() if name in Surroundings.model_fields}
        return parse_section(Place, of_place, where), parse_section(Surroundings, changing, where)

    def _file(self, value: str, kind: str) -> WorldFile:
        path = self._paths.get(value)
        if path is None:
            name = f"{value}.yaml"
            place = f"{name} in a folder, which --worlds names" if self._folder is None else self._folder / name
            raise InputError(f"{value}: there is no world file for this {kind}; add one: {place}")
        found = self._read(path)
        if found.kind != kind:
            raise InputError(f"{path}: kind: is {found.kind}, but {value} is of the kind {kind} in the taxonomy")
        if found.location is not None and found.location.lower().split("-")[0] != value:
            raise InputError(f"{path}: location: is {found.location}; it must begin with {value}, such as {value}-west")
        return found

    def _read(self, path: Path) -> WorldFile:
        if path not in self._files:
            self._files[path] = load_section(WorldFile, path, "the world file")
        return self._files[path]


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of both; where both have one, that of `above`, and of sections their keys in turn."""
    return {
        **below,
        **{
            key: _merge(below[key], value) if isinstance(value, Mapping) and key in below else value
            for key, value in above.items()
        },
    }
