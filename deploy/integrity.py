"""Detect files that were changed, added or linked from elsewhere. No torch here."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath

from perception.errors import InputError
from perception.io.section import Section


class SelfHashed(Section):
    """A record that contains its own sha256, so that any changed byte of its file is detected."""

    sha256: str = ""  # of the record's JSON with an empty string here

    def to_hashed_json(self) -> bytes:
        """The content of the record's file, with the hash."""
        digest = hashlib.sha256(self.model_copy(update={"sha256": ""}).model_dump_json(indent=2).encode())
        return self.model_copy(update={"sha256": digest.hexdigest()}).model_dump_json(indent=2).encode()


def sha256(path: Path) -> str:
    """Hexadecimal digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass(frozen=True)
class Content:
    """The content of a file, read only once, so that the bytes that are used are those that were hashed."""

    path: Path
    data: bytes = field(repr=False)


def read_verified(path: Path, digest: str, remedy: str) -> Content:
    """Read a file. InputError if it is missing or has another sha256."""
    if not path.is_file():
        raise InputError(f"{path}: the file is missing; {remedy}")
    content = Content(path, path.read_bytes())
    if hashlib.sha256(content.data).hexdigest() != digest:
        raise InputError(f"{path}: was changed (its sha256 differs from the record); {remedy}")
    return content


def require_inside(folder: Path, name: str) -> None:
    """Raise InputError unless `name` is a plain relative path inside the folder, with links followed.

    It is parsed by Windows' rules, so that drives and backslashes are refused too.
    """
    plain = PureWindowsPath(name)
    if plain.anchor or ".." in plain.parts or plain.as_posix() != name or not name.isprintable():
        raise InputError(f"{folder}: names {name!r}, which is not a path inside it; do not use this bundle")
    if not Path(os.path.realpath(folder / name)).is_relative_to(os.path.realpath(folder)):
        raise InputError(f"{folder / name}: a link leads out of the bundle; put the file itself there")


def require_nothing_else(folder: Path, names: Collection[str], free: Collection[str]) -> None:
    """Raise InputError if the folder has a file that is neither in `names` nor in one of the folders `free`.

    Args:
        names: paths relative to the folder, with forward slashes, as those in `free`.
    """
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        inside = any(f"{name}/".startswith(f"{each}/") for each in free)
        if name in names or inside or (path.is_dir() and not path.is_symlink()):
            continue
        raise InputError(f"{path}: the manifest does not name this file; remove it, or export the bundle again")
