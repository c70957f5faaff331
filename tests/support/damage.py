"""Damage to a file, or to one in a folder, that a reader must refuse: each function makes a call with its path."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Damage = Callable[[Path], object]
Change = Callable[[Any], object]  # of content, in place


def cut(length: int) -> Damage:
    """The file's first bytes remain; with a negative length all but its last."""
    return lambda path: path.write_bytes(path.read_bytes()[:length])


def write(content: bytes | str) -> Damage:
    """Something else is in the file."""
    return lambda path: path.write_bytes(content if isinstance(content, bytes) else content.encode())


def delete(path: Path) -> None:
    path.unlink()


def file(name: str, damage: Damage) -> Damage:
    """Damage to one file of a folder, which returns nothing."""

    def apply(path: Path) -> None:
        damage(path / name)

    return apply


def linked(name: str) -> Damage:
    """What belongs there lies outside, and a link leads to it."""

    def apply(path: Path) -> None:
        (path / name).rename(path.parent / "outside")
        (path / name).symlink_to(path.parent / "outside")

    return apply


def replace(old: bytes, new: bytes) -> Damage:
    """These bytes, which must be in the file, become others."""

    def damage(path: Path) -> None:
        assert old in path.read_bytes()
        path.write_bytes(path.read_bytes().replace(old, new))

    return damage


def number(place: int, value: float) -> Damage:
    """Another value at one place of a file of float32."""

    def damage(path: Path) -> None:
        numbers = np.fromfile(path, np.float32)
        numbers[place] = value
        path.write_bytes(numbers.tobytes())

    return damage


def put(place: str, value: Any) -> Change:
    """Another value at a place such as data_list.0.token."""

    def change(content: Any) -> None:
        container, key = _at(content, place)
        container[key] = value

    return change


def without(place: str) -> Change:
    """Nothing at a place."""

    def change(content: Any) -> None:
        container, key = _at(content, place)
        del container[key]

    return change


def _at(content: Any, place: str) -> tuple[Any, Any]:
    *path, last = (int(key) if key.isdigit() else key for key in place.split("."))
    for key in path:
        content = content[key]
    return content, last


def in_json(change: Change) -> Damage:
    """The content of a JSON file after a change."""

    def damage(path: Path) -> None:
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return damage


def in_npz(change: Change) -> Damage:
    """The arrays of a .npz after a change of their dict."""

    def damage(path: Path) -> None:
        with np.load(path) as file:
            arrays = dict(file)
        change(arrays)
        np.savez(path, **arrays)

    return damage
