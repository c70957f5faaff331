"""The YAML files that come with the package, by kind and name."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from perception.errors import InputError, suggestion

_SCHEMA = re.compile(r"# yaml-language-server: \$schema=[\w./]*?(\w+)\.json\n")  # the first line of each file


def shipped_folder() -> Path:
    """Folder of the files: in an installed package, or in a checkout."""
    package = Path(__file__).parents[1]
    return next(folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir())


@cache
def shipped_files(kind: str) -> dict[str, Path]:
    """Name -> YAML file of a kind, such as `rig`. The schema in a file's first line states the kind."""
    files: dict[str, Path] = {}
    for path in sorted(shipped_folder().rglob("*.yaml")):
        with path.open(encoding="utf-8") as file:
            schema = _SCHEMA.match(file.readline())
        if schema and schema[1] == kind:
            files[path.stem] = path
    return files


def named_file(kind: str, name: str | Path, folder: Path = Path()) -> Path:
    """A YAML file by its path, or one that comes with the package by its name, such as tiny or nuscenes/fusion.

    Paths are relative to the folder. A path with a suffix that does not exist is returned unchanged: whoever reads the
    file reports it.
    """
    path, files = folder / name, shipped_files(kind)
    if path.exists() and not path.is_dir():
        return path
    if path.suffix:
        if path.exists() or path.stem not in files:
            return path
        raise InputError(f"{name}: no such file; {path.stem}, without suffix, is the one that comes with the package")
    inside = {path.relative_to(shipped_folder()).with_suffix("").as_posix(): path for path in files.values()}
    found = files.get(str(name)) or inside.get(str(name))
    if found is None:
        known = f", nor one that comes with the package: {', '.join(sorted(files))}" if files else ""
        raise InputError(f"{name}: no such YAML file{known}{suggestion(str(name), [*files, *inside])}")
    return found
