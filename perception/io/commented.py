"""Sections as YAML with a comment for each key."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from perception.io.explained import explanations, first_sentence
from perception.io.section import dump_yaml

_WIDTH = 110  # of a line with its comment


def commented_yaml(section: BaseModel, written: Mapping[str, Any] | None = None) -> str:
    """A section as a YAML document with a comment for each key.

    Args:
        written: other content for some of its keys, such as the name of what the section has in full.
    """
    return "\n".join(_lines(section, written or {})) + "\n"


def _lines(section: BaseModel, written: Mapping[str, Any]) -> Iterator[str]:
    texts, plain = explanations(type(section)), section.model_dump(mode="json", by_alias=True)
    for name, field in type(section).model_fields.items():
        key = field.alias or name
        value = written.get(key, getattr(section, name))
        choices = _choices(field.annotation)
        text = texts.get(name, "")
        text += f"{'; ' if text else ''}one of {', '.join(choices)}" if len(choices) > 1 else ""
        yield from _entry(key, value, written.get(key, plain[key]), text)


def _entry(key: str, value: Any, plain: Any, text: str) -> Iterator[str]:
    """Yield the lines of one key: its value on the same line, or its sections indented below."""
    below: list[str] = []
    if isinstance(value, BaseModel):
        below = [*_lines(value, {})]
    elif isinstance(value, Mapping) and any(isinstance(each, BaseModel) for each in value.values()):
        for name, each in value.items():
            below += _entry(name, each, plain[name], first_sentence(type(each)))
    elif isinstance(value, tuple) and any(isinstance(each, BaseModel) for each in value):
        for each in value:
            lines = [*_lines(each, {})]
            first = next(i for i, line in enumerate(lines) if not line.startswith("#"))
            below += [*lines[:first], f"- {lines[first]}", *(f"  {line}" for line in lines[first + 1 :])]
    line = f"{key}:" if below else dump_yaml({key: plain}, flow=True).strip()[1:-1]
    if text and len(line) + len(text) + 4 > _WIDTH:
        yield from textwrap.wrap(text, _WIDTH - 10, initial_indent="# ", subsequent_indent="# ")
        yield line
    else:
        yield f"{line}  # {text}" if text else line
    yield from (f"  {line}" for line in below)


def _choices(annotation: Any) -> list[str]:
    """The words that a value can be, if it can be nothing else but None."""
    if get_origin(annotation) is Literal:
        return [str(each) for each in get_args(annotation)]
    inside = [each for each in get_args(annotation) if each is not type(None)]
    return _choices(inside[0]) if len(inside) == 1 and get_origin(annotation) not in (tuple, dict) else []
