"""Reads the JSON tables of a nuScenes dataroot row by row.

v1.0-trainval has 2.6 million rows of sample_data and of ego_pose, and 1.2 million annotations.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import orjson

from perception.errors import InputError
from perception.files import pause_collector

_BLOCK = 1 << 20  # bytes of rows that are parsed at once
_MOST_BLOCKS = 16  # without the end of a row
_CHUNK = 1 << 24  # characters per read; much longer than any row
_OPENING, _BETWEEN_ROWS = re.compile(rb"\s*\["), re.compile(r"[\s,]*")


def versions(dataroot: Path) -> list[str]:
    """The versions of the tables in a dataroot."""
    return sorted(path.parent.name for path in dataroot.glob("*/sample_data.json"))


def only_version(dataroot: Path) -> str:
    """The version of a dataroot with a single one.

    Raises:
        InputError: it has several, or none.
    """
    found = versions(dataroot)
    if len(found) != 1:
        raise InputError(f"{dataroot}: holds {', '.join(found) or 'no tables'}; say which with --version")
    return found[0]


def version_folder(dataroot: Path, version: str) -> Path:
    """The folder of the tables.

    Raises:
        InputError: the dataroot, or this version in it, does not exist.
    """
    folder = dataroot / version
    if folder.is_dir():
        return folder
    if not dataroot.is_dir():
        raise InputError(f"{dataroot}: no such folder; give the dataroot that holds {version}/ and samples/")
    if found := versions(dataroot):
        raise InputError(f"{dataroot}: has no version {version}; it has {', '.join(found)}")
    raise InputError(f"{dataroot}: not a nuScenes dataroot: it has no folder {version}/ with sample_data.json")


def rows(folder: Path, table: str) -> Iterator[dict[str, Any]]:
    """The rows of one table, streamed so that memory does not grow with the table.

    Raises:
        InputError: the table is missing or is not a JSON list of objects.
    """
    path = folder / f"{table}.json"
    try:
        with path.open("rb") as file:
            yield from _rows(file, path)
    except FileNotFoundError:
        raise InputError(f"{path}: the table is missing; complete {folder.name}/ from the dataset") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot read the table ({error.__class__.__name__})") from None


def _rows(file: BinaryIO, path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a table, parsed block by block; row by row from a block on that is not made of whole rows alone."""
    rest = file.read(_BLOCK)
    opening = _OPENING.match(rest)
    if opening is None:
        raise InputError(f"{path}: not a table: a JSON list of objects is expected; copy it again")
    position, rest = opening.end(), rest[opening.end() :]  # position: of `rest` in the file
    while True:
        more = file.read(_BLOCK)
        end = rest.rfind(b"},") + 1 if more else len(rest)
        if end or not more:
            block = _block(rest[:end] + b"]" if more else rest)
            if block is None:
                break
            yield from block
            if not more:
                return
            position, rest = position + end + 1, rest[end + 1 :]
        elif len(rest) > _MOST_BLOCKS * _BLOCK:
            break  # rows that end otherwise, which would all be held
        rest += more
    file.seek(position)
    yield from _single_rows(io.TextIOWrapper(file, "utf-8"), path)


def _block(content: bytes) -> list[dict[str, Any]] | None:
    """The rows in a block that ends with ]; None if it has anything else."""
    try:
        with pause_collector():
            found = orjson.loads(b"[" + content)
    except orjson.JSONDecodeError:
        return None
    return found if isinstance(found, list) and all(isinstance(row, dict) for row in found) else None


def _single_rows(file: TextIO, path: Path) -> Iterator[dict[str, Any]]:
    """The rows from the place of the file on, each parsed alone."""
    decoder = json.JSONDecoder()
    text, position = file.read(_CHUNK), 0
    while True:
        position = _BETWEEN_ROWS.match(text, position).end()  # type: ignore[union-attr]
        try:
            row, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            if text[position : position + 1] == "]":
                return
            more = file.read(_CHUNK) if len(text) - position < _CHUNK else ""
            if not more:
                start = " ".join(text[position : position + 40].split()) or "the end of the file"
                raise InputError(f"{path}: not valid JSON ({error.msg.lower()} at {start!r}); copy it again") from None
            text, position = text[position:] + more, 0
            continue
        if not isinstance(row, dict):
            raise InputError(f"{path}: a row is {type(row).__name__}, not an object; copy it again")
        yield row


@contextmanager
def linked(folder: Path, table: str) -> Iterator[None]:
    """Report a missing field or an unknown token, raised as KeyError, as an InputError about this table."""
    try:
        yield
    except KeyError as error:
        raise InputError(
            f"{folder / table}.json: the field or token {error.args[0]!r} is missing; copy the tables again"
        ) from None
    except (TypeError, ValueError) as error:
        raise InputError(f"{folder / table}.json: a row has a wrong value ({error}); copy it again") from None


def stamps(folder: Path, tables: Iterable[str]) -> dict[str, list[Any]]:
    """Path, size and time of change (ns) of each table, by which a changed one is recognised; raises as `rows`."""
    found = {}
    for table in tables:
        path = (folder / f"{table}.json").resolve()
        try:
            status = path.stat()
        except OSError:
            next(rows(folder, table), None)  # raises
            raise
        found[table] = [str(path), status.st_size, status.st_mtime_ns]
    return found
