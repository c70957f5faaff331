"""Reads flat configurations of mmdet3d: Python files of names and literals, parsed without running them.

mmengine's `Config.dump` writes such a file, with literals and dict(key=value) as the only values. Every training of
mmdet3d has one in its folder, and `mim download` writes one beside the checkpoint.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perception.errors import InputError

FLATTEN = "python -c \"from mmengine.config import Config; Config.fromfile('{}').dump('flat.py')\""


class ConfigSection:
    """One dictionary of a configuration.

    Args:
        content: the dictionary.
        path: of the configuration, for messages.
        name: key path of the dictionary, such as model.pts_neck; empty for the whole configuration.
    """

    def __init__(self, content: Mapping[str, Any], path: Path, name: str = "") -> None:
        self.content, self.path, self.name = content, path, name

    def __getitem__(self, key: str) -> Any:
        if key not in self.content:
            raise InputError(f"{self.path}: {self._key_path(key)} is missing")
        return self.content[key]

    def _key_path(self, key: str) -> str:
        return f"{self.name}.{key}" if self.name else key

    def get(self, key: str, default: Any) -> Any:
        return self.content.get(key, default)

    def part(self, key: str) -> ConfigSection:
        """The dictionary at this key."""
        content = self[key]
        if not isinstance(content, dict):
            raise InputError(f"{self.path}: {self._key_path(key)} must be a dictionary, is {content!r}")
        return ConfigSection(content, self.path, self._key_path(key))

    def require(self, key: str, *supported: Any, default: Any = ...) -> None:
        """Raise InputError unless the setting has one of the supported values.

        Args:
            default: mmdet3d's value where the key is absent. By default the key must be present; None accepts its
                absence.
        """
        if default is None and key not in self.content:
            return
        given = self[key] if default is ... else self.get(key, default)
        if _as_lists(given) not in [_as_lists(each) for each in supported]:
            raise self.unsupported(f"{key} is {given!r}, ours has {' or '.join(repr(each) for each in supported)}")

    def unsupported(self, reason: str) -> InputError:
        return InputError(f"{self.path}: {self.name}: no counterpart here: {reason}")


def _as_lists(value: Any) -> Any:
    """Tuples as lists, so that both are equal."""
    return [_as_lists(each) for each in value] if isinstance(value, list | tuple) else value


def read_config(path: Path) -> ConfigSection:
    """The names of a flat configuration with their values.

    Raises:
        InputError: the file is absent, not Python, contains more than names and values, or has no `model`.
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
    return ConfigSection(content, path)


class _Dictionaries(ast.NodeTransformer):
    """Rewrites dict(key=value), as mmengine writes dictionaries, to the literal {'key': value}."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        match node:
            case ast.Call(ast.Name("dict"), [], keywords) if all(keyword.arg for keyword in keywords):
                return ast.Dict([ast.Constant(each.arg) for each in keywords], [each.value for each in keywords])
        return node
