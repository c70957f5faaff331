"""Flat configurations of mmdet3d. They are Python files, but are read here, not run.

mmengine's `Config.dump` writes a value for each name, of literals and dict(key=value) alone. Such a file is in the
folder of every training, and `mim download` writes one beside the checkpoint.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perception.errors import InputError

FLATTEN = "python -c \"from mmengine.config import Config; Config.fromfile('{}').dump('flat.py')\""


class Settings:
    """One dictionary of a configuration.

    Args:
        content: the dictionary.
        path: of the configuration, for messages.
        name: of the dictionary, such as model.pts_neck; empty for the whole configuration.
    """

    def __init__(self, content: Mapping[str, Any], path: Path, name: str = "") -> None:
        self.content, self.path, self.name = content, path, name

    def __getitem__(self, key: str) -> Any:
        if key not in self.content:
            raise InputError(f"{self.path}: {self._place(key)} is missing")
        return self.content[key]

    def _place(self, key: str) -> str:
        return f"{self.name}.{key}" if self.name else key

    def get(self, key: str, default: Any) -> Any:
        return self.content.get(key, default)

    def part(self, key: str) -> Settings:
        """A dictionary in this one."""
        content = self[key]
        if not isinstance(content, dict):
            raise InputError(f"{self.path}: {self._place(key)} must be a dictionary, is {content!r}")
        return Settings(content, self.path, self._place(key))

    def require(self, key: str, *served: Any, default: Any = ...) -> None:
        """Raise InputError unless the setting is one of those that ours has a counterpart of.

        Args:
            default: what mmdet3d takes where the key is absent; by default the key must be there. None takes any
                absent key for served.
        """
        if default is None and key not in self.content:
            return
        given = self[key] if default is ... else self.get(key, default)
        if _plain(given) not in [_plain(each) for each in served]:
            raise self.refused(f"{key} is {given!r}, ours has {' or '.join(repr(each) for each in served)}")

    def refused(self, reason: str) -> InputError:
        return InputError(f"{self.path}: {self.name}: no counterpart here: {reason}")


def _plain(value: Any) -> Any:
    """Tuples as lists, so that both are equal."""
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def read_config(path: Path) -> Settings:
    """All names of a flat configuration with their values.

    Raises:
        InputError: the file is absent, no Python, or has more in it than names and values, or no `model`.
    """
    try:
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text, str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot read the configuration ({error.__class__.__name__})") from None
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"{path}: not a Python file ({error.__class__.__name__})") from None
    content: dict[str, Any] = {}
    for statement in tree.body:
        try:
            match statement:
                case ast.Assign([ast.Name(name)], value) if name != "_base_":
                    content[name] = ast.literal_eval(_Dictionaries().visit(value))
                case _:
                    raise ValueError
        except (ValueError, TypeError, RecursionError, MemoryError):
            line = text.splitlines()[statement.lineno - 1].strip()
            raise InputError(
                f"{path}:{statement.lineno}: {line[:40]!a} is more than a name and its value: a configuration is read, "
                f"not run; write a flat one with {FLATTEN.format(path)}"
            ) from None
    if not isinstance(content.get("model"), dict):
        raise InputError(f"{path}: no `model` here; give a configuration of mmdet3d")
    return Settings(content, path)


class _Dictionaries(ast.NodeTransformer):
    """dict(key=value), as mmengine writes dictionaries, becomes {'key': value}, which is a literal."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        match node:
            case ast.Call(ast.Name("dict"), [], keywords) if all(keyword.arg for keyword in keywords):
                return ast.Dict([ast.Constant(each.arg) for each in keywords], [each.value for each in keywords])
        return node
