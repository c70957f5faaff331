"""SHA256SUMS: the hash of every file in a folder, by which changed, added and linked files are found. No torch here."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath

from perception.errors import InputError

SUMS, SUMS_SIGNATURE = "SHA256SUMS", "SHA256SUMS.sig"


@dataclass(frozen=True)
class Content:
    """The content of a file, read only once, so that the bytes that are used are those that were hashed."""

    path: Path
    data: bytes = field(repr=False)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def make_sums(folder: Path) -> bytes:
    """The content of SHA256SUMS for all files that are in the folder now."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return "".join(f"{sha256(folder / name)}  {name}\n" for name in names).encode()


def parse_sums(sums: Content) -> dict[str, str]:
    """The digests of a SHA256SUMS, by file name."""
    digests = {}
    for number, line in enumerate(sums.data.decode("utf-8", "replace").splitlines(keepends=True), 1):
        found = re.fullmatch(r"([0-9a-f]{64})  (.+)\n", line)
        if found is None:
            raise InputError(f"{sums.path}: line {number} is not a sha256, two spaces and a name; do not use it")
        require_inside(sums.path.parent, found[2])
        digests[found[2]] = found[1]
    return digests


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

    These are paths relative to the folder, with forward slashes.
    """
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        inside = any(f"{name}/".startswith(f"{each}/") for each in free)
        if name in names or inside or (path.is_dir() and not path.is_symlink()):
            continue
        raise InputError(f"{path}: {SUMS} does not name this file; remove it, or export the bundle again")
