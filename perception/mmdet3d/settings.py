"""A part of a configuration of mmdet3d, and refusals that say where in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perception.errors import InputError


class Settings:
    """One dictionary of a configuration.

    Args:
        content: the dictionary.
        path: of the configuration, for messages.
        name: of the dictionary, such as model.pts_neck.
    """

    def __init__(self, content: Mapping[str, Any], path: Path, name: str) -> None:
        self.content, self.path, self.name = content, path, name

    def __getitem__(self, key: str) -> Any:
        if key not in self.content:
            raise InputError(f"{self.path}: {self.name}.{key} is missing")
        return self.content[key]

    def get(self, key: str, default: Any) -> Any:
        return self.content.get(key, default)

    def part(self, key: str) -> Settings:
        """A dictionary in this one."""
        content = self[key]
        if not isinstance(content, dict):
            raise InputError(f"{self.path}: {self.name}.{key} must be a dictionary, is {content!r}")
        return Settings(content, self.path, f"{self.name}.{key}")

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
