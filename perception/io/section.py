"""The base class of configuration sections, and how they are read from files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, Tag, TypeAdapter, ValidationError

from perception.errors import InputError, suggestion
from perception.io.explained import explanations

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

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: Any) -> Any:
        """The schema with the explanations of the keys, and without the defaults of whole sections."""
        described = handler(schema)
        properties = handler.resolve_ref_schema(described)["properties"]
        texts = explanations(cls)
        for name, field in cls.model_fields.items():
            key = properties[field.alias or name]
            key |= {"description": texts[name]} if name in texts else {}
            if isinstance(key.get("default"), dict) and key["default"]:
                del key["default"]
        return described


Kind = TypeVar("Kind", bound=Section)


def parse_section(kind: type[Kind], content: object, source: str) -> Kind:
    """The section in a parsed YAML or JSON document; InputError names the wrong key."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{source}: {explain(kind, error)}") from None


def explain(kind: type[Section], error: ValidationError, whole: str = "(top level)") -> str:
    """The first mistake in a section: its key, or `whole` if that is the section, and what is wrong."""
    first, *others = map(_innermost, error.errors())
    if first["type"] == "missing":  # an unknown key may be it, mistyped
        first = next((each for each in others if each["type"] == "extra_forbidden"), first)
    message, given, context = first["msg"], first["input"], first.get("ctx", {})
    if first["type"] == "extra_forbidden":
        *path, wrong = first["loc"]
        keys = [f.alias or name for each in _sections_at(kind, path) for name, f in each.model_fields.items()]
        what = f"is not a known key{suggestion(str(wrong), keys)}"
    elif first["type"] == "value_error":  # our own words
        what = message.removeprefix("Value error, ")
    elif first["type"] == "union_tag_invalid":
        tag, known = context["tag"], context["expected_tags"]
        what = f"{tag!r} is none of {known}{_nearest(tag, known)}"
    else:
        what = message[:1].lower() + message[1:] + ("" if first["type"] == "missing" else f", got {given!r}")
        what += _nearest(str(given), message) if first["type"] == "literal_error" else ""
    return f"{'.'.join(map(str, first['loc'])) or whole}: {what}"


def _innermost(error: Any) -> dict[str, Any]:
    """Return the error itself or, if a validator parsed a nested section, the first error in that section."""
    inside = error.get("ctx", {}).get("error")
    if not isinstance(inside, ValidationError):
        return {**error}
    found = _innermost(inside.errors()[0])
    return {**found, "loc": (*error["loc"], *found["loc"])}


def _nearest(word: str, message: str) -> str:
    """The suggestion for a mistyped word among those that a message of pydantic has in quotes."""
    return suggestion(word, re.findall("'([^']*)'", message))


class Contents:
    """Marks a field whose values a validator makes of what is written: sections of a registry, or one by its name.

    Args:
        written: returns the type of what is written. It is called late, since a registry imports its classes late.
    """

    def __init__(self, written: Callable[[], Any]) -> None:
        self.written = written

    def __get_pydantic_json_schema__(self, schema: Any, handler: Callable[[Any], Any]) -> Any:
        return handler(TypeAdapter(self.written()).core_schema)


def _sections_at(kind: Any, path: Sequence[str | int]) -> Iterator[type[Section]]:
    """The sections that may be at a path of keys, indices and tags of unions inside a value of this type."""
    if isinstance(kind, type) and issubclass(kind, Section):
        yield from _sections_in(kind, path) if path else (kind,)
        return
    if get_origin(kind) is Annotated:
        inside, *marks = get_args(kind)
        for mark in marks:
            if isinstance(mark, Contents):
                inside = mark.written()
            elif isinstance(mark, Tag):
                if path[:1] != [mark.tag]:
                    return
                path = path[1:]
        yield from _sections_at(inside, path)
        return
    listed = get_origin(kind) in (dict, tuple)
    for each in dict.fromkeys(get_args(kind)) if path or not listed else ():
        yield from _sections_at(each, path[1:] if listed else path)


_ANNOTATED: Any = Annotated  # for types that are known at run time


def _sections_in(kind: type[Section], path: Sequence[str | int]) -> Iterator[type[Section]]:
    for name, field in kind.model_fields.items():
        if path[0] in (name, field.alias):
            marked = (field.annotation, None, *field.metadata)
            yield from _sections_at(_ANNOTATED[marked], path[1:])
        elif get_args(field.annotation) == (path[0],):  # a literal: the tag of this section in a union
            yield from _sections_at(kind, path[1:])


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


class _Loader(yaml.SafeLoader):
    """Also reads 5e-3 as a number, as YAML 1.2 does; for PyYAML it is a text."""


class _Dumper(yaml.SafeDumper):
    """Quotes texts that would be read as numbers."""


for _each in (_Loader, _Dumper):
    _each.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"), [*"-+.0123456789"]
    )


def dump_yaml(content: Any, flow: bool = False) -> str:
    """A YAML document that `parse_yaml` reads as this content; flow: on one line."""
    width = float("inf") if flow else 120
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=flow, width=width)


def parse_yaml(text: str | bytes) -> Any:
    """The content of a YAML document; ValueError if it has none, RecursionError if it is nested too deeply."""
    loader = _Loader(text)
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
