"""Explanations of the keys of sections: the comments at the fields of their classes."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
import tokenize
from io import StringIO
from typing import Any, get_args

from pydantic import BaseModel

_YAML = {"None": "null", "True": "true", "False": "false"}
_PYTHON = re.compile(r"\b(None|True|False)\b")


def explanations(kind: type[BaseModel]) -> dict[str, str]:
    """Field -> the comment at it in the source or, without one, the first sentence of its section's docstring."""
    texts: dict[str, str] = {}
    for parent in reversed(kind.__mro__):
        if issubclass(parent, BaseModel) and parent.model_fields:
            texts |= _comments(parent)
    for name, field in kind.model_fields.items():
        if name not in texts and (text := first_sentence(field.annotation)):
            texts[name] = text
    return {name: _PYTHON.sub(lambda word: _YAML[word[0]], text) for name, text in texts.items()}


def first_sentence(annotation: Any) -> str:
    """The first sentence of a section's docstring, if a field is one or None."""
    for each in (annotation, *get_args(annotation)):
        if isinstance(each, type) and issubclass(each, BaseModel) and each.__doc__:
            text = " ".join(each.__doc__.split("\n\n")[0].split())
            return re.split(r"(?<=[^.][^.]\.) (?=[A-Z])", text)[0].removesuffix(".")
    return ""


def _comments(kind: type) -> dict[str, str]:
    """Field -> the comment on its lines or, without one, that above it."""
    try:
        source = textwrap.dedent(inspect.getsource(kind))
    except (OSError, TypeError):  # a class that was made by a call
        return {}
    found: dict[int, str] = {}
    alone: set[int] = set()
    for token in tokenize.generate_tokens(StringIO(source).readline):
        text = token.string.removeprefix("#").strip()
        if token.type == tokenize.COMMENT and not text.startswith(("type:", "noqa", "fmt:")):
            found[token.start[0]] = text
            alone |= {token.start[0]} if token.line.lstrip().startswith("#") else set()
    texts = {}
    (body,) = ast.parse(source).body
    for field in body.body if isinstance(body, ast.ClassDef) else ():
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            lines = [i for i in range(field.lineno, (field.end_lineno or 0) + 1) if i in found]
            above = field.lineno - 1
            while not lines and above in alone:
                above -= 1
            if lines := lines or list(range(above + 1, field.lineno)):
                texts[field.target.id] = " ".join(found[i] for i in lines).removesuffix(".")
    return texts
