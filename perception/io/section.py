"""The base class of configuration sections, and how they are read from files."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from perception.errors import InputError

MODULE_NAME = r"[A-Za-z][\w-]*"
Positive = Annotated[int, Field(gt=0)]
Sizes = Annotated[tuple[Positive, ...], Field(strict=False)]
# Channels, a rank, or the side of a map; far more would not fit into memory.
Width = Annotated[int, Field(gt=0, le=4096)]
Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
Range = Annotated[tuple[float, float], Field(strict=False)]  # from, to
_MOST_NODES = 1_000_000  # of a YAML document with its aliases in full


class Section(BaseModel):
    """A section of a configuration file, strict about types and names."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


Kind = TypeVar("Kind", bound=Section)


def parse_section(kind: type[Kind], content: object, source: str) -> Kind:
    """The section in a parsed YAML or JSON document; InputError names the wrong key."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = first_error(error)
        key = ".".join(str(part) for part in first["loc"]) or "(top level)"
        if first["type"] == "extra_forbidden":
            what = "is not a known key"
        elif first["type"] == "value_error":  # our own words
            what = first["msg"].removeprefix("Value error, ")
        else:
            what = first["msg"].lower() + ("" if first["type"] == "missing" else f", got {first['input']!r}")
        raise InputError(f"{source}: {key}: {what}") from None


def first_error(error: ValidationError) -> dict[str, Any]:
    """The first error, as of `errors`; within a section that a validator parses, the first there."""
    first: dict[str, Any] = {**error.errors()[0]}
    inside = first.get("ctx", {}).get("error")
    if not isinstance(inside, ValidationError):
        return first
    found = first_error(inside)
    return {**found, "loc": (*first["loc"], *found["loc"])}


def load_section(kind: type[Kind], path: Path, name: str) -> Kind:
    """Read a section from a YAML file; an empty file has no keys."""
    return parse_section(kind, read_yaml(path, name), str(path))


def read_yaml(path: Path, name: str) -> Any:
    """The content of a YAML file; an empty one is {}."""
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot read {name} ({error.__class__.__name__})") from None
    except ValueError as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise InputError(f"{path}: {name} is nested too deeply") from None
    return {} if content is None else content


def parse_yaml(text: str | bytes) -> Any:
    """The content of a YAML document; ValueError if it has none, RecursionError if it is nested too deeply."""
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _expanded(node, {}) > _MOST_NODES:
            raise ValueError(f"its aliases stand for more than {_MOST_NODES} values")
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
    finally:
        loader.dispose()


def _expanded(node: yaml.Node, known: dict[int, int]) -> int:
    """Number of nodes below one, each as often as aliases repeat it."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        children = chain.from_iterable(node.value) if isinstance(node, yaml.MappingNode) else node.value
        known[id(node)] = 1 + sum(_expanded(child, known) for child in children)
    return known[id(node)]


def overridden(content: Any, changes: Sequence[str]) -> Any:
    """A parsed YAML document with other values for some keys.

    Args:
        changes: KEY.KEY=VALUE, with the value in YAML: train.batch=8.
    """
    for change in changes:
        key, equals, value = change.partition("=")
        try:
            parsed = parse_yaml(value)
        except (ValueError, RecursionError):
            equals = ""
        if not equals or not key:
            raise InputError(f"{change}: write KEY=VALUE, such as train.batch=8")
        content = _change_key(content, key.split("."), parsed, change)
    return content


def _change_key(content: Any, keys: Sequence[str], value: Any, change: str) -> Any:
    if not keys:
        return value
    if not isinstance(content, dict | None):
        raise InputError(f"{change}: {keys[0]} would be a key of {content!r}, which has none")
    content = content or {}
    return {**content, keys[0]: _change_key(content.get(keys[0]), keys[1:], value, change)}


def shipped_files(folder: str = "") -> dict[str, Path]:
    """Name -> YAML file, of a folder of `configs`, which comes with the package."""
    here = Path(__file__).parents[1]
    places = here.parent / "configs" / folder, here / "configs" / folder  # in a checkout; in an installed package
    return {
        path.relative_to(place).with_suffix("").as_posix(): path for place in places for path in place.rglob("*.yaml")
    }


def named_file(what: str, folder: str, name: str | Path) -> Path:
    """A YAML file by its path, or one that comes with the package by its name."""
    if Path(name).suffix in (".yaml", ".yml"):
        return Path(name)
    files = shipped_files(folder)
    if str(name) not in files:
        raise InputError(f"{what} {name}: not known; give a YAML file or one of {', '.join(sorted(files))}")
    return files[str(name)]
