"""World files: what a value of a condition changes in the simulated world, a YAML file for each.

configs/worlds/rain.yaml is the world file of `rain`. A file says of which kind its condition is, and has the parameters
that it changes; the others stay. A drive's conditions are composed: kinds that stand earlier in the taxonomy override
those that stand later.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import model_validator

from perception.errors import InputError
from perception.frame import Conditions
from perception.section import Section, load_section, parse_section, shipped, shipped_names
from perception.simulate.parameters import (
    Agents,
    Air,
    Buildings,
    Cover,
    Light,
    Place,
    Streets,
    Surroundings,
    Vegetation,
)
from perception.taxonomy import Taxonomy, Word


class WorldFile(Section):
    """One file. Only keys that it has count: the values of the others here stand for nothing."""

    kind: Word  # of the condition, such as weather
    location: str | None = None  # of a city: the name of its map, such as munich-west
    streets: Streets = Streets()
    buildings: Buildings = Buildings()
    vegetation: Vegetation = Vegetation()
    agents: Agents = Agents()
    light: Light = Light()
    air: Air = Air()
    ground: Cover = Cover()

    @model_validator(mode="after")
    def _streets_of_a_city(self) -> WorldFile:
        if "streets" in self.model_fields_set and self.location is None:
            raise ValueError("`streets` are a city's, whose file has a `location`; add one, or leave the streets out")
        return self


class Worlds:
    """World files by the values of conditions: of a folder, if one is given, and those that come with the package.

    Raises:
        InputError: the folder does not exist.
    """

    def __init__(self, folder: Path | None = None) -> None:
        if folder is not None and not folder.is_dir():
            raise InputError(f"{folder}: no such folder; give one with world files such as munich.yaml")
        self._folder = folder
        self._files: dict[Path, WorldFile] = {}

    def kinds(self) -> dict[str, tuple[str, ...]]:
        """Kind -> the values with a world file. Kinds are in reverse order of the alphabet: weather, light, city."""
        own = [] if self._folder is None else [path.stem for path in self._folder.glob("*.yaml")]
        found: dict[str, list[str]] = {}
        for value in sorted({*own, *shipped_names("worlds")}):
            path = self._path(value)
            assert path is not None
            found.setdefault(self._read(path).kind, []).append(value)
        return {kind: tuple(found[kind]) for kind in sorted(found, reverse=True)}

    def compose(self, conditions: Conditions, taxonomy: Taxonomy) -> tuple[Place, Surroundings]:
        """The world under these conditions.

        Raises:
            InputError: a value has no file, a file is wrong or of another kind, or two of them lay out a city.
        """
        merged: dict[str, Any] = {}
        for kind in reversed(list(taxonomy.conditions)):
            value = conditions[kind]
            found = self._file(value, kind)
            if found.location is not None:
                if "location" in merged:
                    raise InputError(f"{value} and {merged['name']}: both are cities, with a `location`; keep one")
                merged["name"] = value
            merged = _merged(merged, found.model_dump(exclude_unset=True, exclude={"kind"}))
        where = f"world of {'-'.join(conditions.known())}"
        of_place = {name: part for name, part in merged.items() if name in Place.model_fields}
        changing = {name: part for name, part in merged.items() if name in Surroundings.model_fields}
        return parse_section(Place, of_place, where), parse_section(Surroundings, changing, where)

    def _file(self, value: str, kind: str) -> WorldFile:
        path = self._path(value)
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

    def _path(self, value: str) -> Path | None:
        own = None if self._folder is None else self._folder / f"{value}.yaml"
        return own if own is not None and own.exists() else shipped("worlds", value)

    def _read(self, path: Path) -> WorldFile:
        if path not in self._files:
            self._files[path] = load_section(WorldFile, path, "the world file")
        return self._files[path]


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of both; where both have one, that of `above`, and of sections their keys in turn."""
    return {
        **below,
        **{
            key: _merged(below[key], value) if isinstance(value, Mapping) and key in below else value
            for key, value in above.items()
        },
    }
