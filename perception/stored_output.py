"""What commands write to object stores: written here, and put into the store in the end (`perception.storage`)."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

from perception.errors import InputError
from perception.storage import (
    THREADS,
    address_of,
    attempt,
    below,
    fetch_all,
    is_remote,
    mark_of,
    mirror_of,
    objects_of,
    system_of,
    url_of,
)

MARKS = ("v1.0-*/*", "*checkpoint.json", "manifest.json")  # files by which drives, runs and bundles count as whole


@contextmanager
def output(path: Path) -> Iterator[Path]:
    """As `results` of a folder to which an earlier command may have written; of several processes the first one puts.

    The folder begins with what is in the store, so that a command can go on there, or refuse to; what has changed is
    put, files of MARKS last, and what is removed here is removed there. Afterwards the store alone has it. After an
    error or a kill this machine has what was written, and goes on with it.

    Raises:
        InputError: the store cannot be reached or written; or several machines train.
    """
    if not is_remote(path):
        yield path
        return
    if os.environ.get("WORLD_SIZE", "1") != os.environ.get("LOCAL_WORLD_SIZE", "1"):
        raise InputError(f"{path}: several machines train into a folder that all of them see, not an object store")
    local = below("outputs", path)
    objects = attempt(local, lambda: objects_of(local))
    fetch_all(local, objects, unput=True)
    if os.environ.get("RANK", "0") != "0":
        yield local
        return
    _require_writable(local)
    try:
        yield local
    finally:
        _put_changed(local, objects)
    if sys.exc_info()[0] is None:  # some versions of click end it without the exception
        shutil.rmtree(local, ignore_errors=True)


def _require_writable(local: Path) -> None:
    """Raise InputError unless a file can be put into a folder."""
    probe = f"{url_of(local)}/.writable"
    try:
        attempt(local, lambda: system_of(local).pipe_file(probe, b"-"))
    except FileNotFoundError:
        raise InputError(f"{url_of(local)}: there is no such bucket; check the address") from None
    attempt(local, lambda: system_of(local).rm_file(probe))


def _put_changed(local: Path, objects: Mapping[str, Any]) -> None:
    """Make a folder in its store equal to the one here, but for files of LATER that were not fetched.

    Args:
        objects: what the store has.
    """
    changed = [name for name in _files(local) if _is_changed(local / name)]
    gone = [name for name in objects if not (local / name).exists()]
    marks = [name for name in changed if any(fnmatchcase(name, pattern) for pattern in MARKS)]
    for name in {*gone, *(each for each in marks if each in objects)}:
        attempt(local, partial(_remove, system_of(local), url_of(local / name)))
    put(local, [name for name in changed if name not in marks])
    put(local, marks)


@contextmanager
def results(out: Path, last: Sequence[str], only: Collection[str] | None = None) -> Iterator[Path]:
    """The folder on this machine to write results to; those for an object store are put there in the end.

    This also happens after an error, since some results describe it. Hidden files stay here.

    Args:
        last: names of files that mark the others as whole: they are removed first and put last, in this order.
        only: names of files to put; None: all.

    Raises:
        InputError: the store cannot be reached or written.
    """
    folder = mirror_of(out)
    try:
        yield folder
    finally:
        _put(folder, last, only)


def _put(folder: Path, last: Sequence[str], only: Collection[str] | None) -> None:
    if address_of(folder) is None or not folder.is_dir():
        return
    system = system_of(folder)
    for name in last:
        attempt(folder, partial(_remove, system, url_of(folder / name)))
    names = [name for name in _files(folder) if only is None or name in only]
    put(folder, [name for name in names if name not in last])
    for name in last:
        put(folder, [name] if name in names else [])


def _files(folder: Path) -> list[str]:
    """The files of a folder by relative name, without hidden ones."""
    files = [each.relative_to(folder) for each in sorted(folder.rglob("*")) if each.is_file()]
    return [each.as_posix() for each in files if not any(part.startswith(".") for part in each.parts)]


def _is_changed(local: Path) -> bool:
    """Whether a file of the mirror is not, or no longer, the one of the store."""
    mark = mark_of(local)
    return not mark.is_file() or local.stat().st_mtime_ns > mark.stat().st_mtime_ns


def put(folder: Path, names: Sequence[str]) -> None:
    """Put files of a folder of the mirror into its store.

    Raises:
        InputError: the store cannot be reached or written.
    """

    def transfer(name: str) -> None:
        local = folder / name
        try:
            attempt(local, lambda: system_of(local).put_file(str(local), url_of(local)))
        except FileNotFoundError:
            raise InputError(f"{url_of(local)}: there is no such bucket; check the address") from None

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(transfer, names))


def removed(folder: Path) -> None:
    """Remove a folder here and, if it is of the mirror, in its store."""
    if address_of(folder) is not None:
        attempt(folder, partial(_remove, system_of(folder), url_of(folder)))
    shutil.rmtree(folder, ignore_errors=True)


def _remove(system: Any, url: str) -> None:
    if system.exists(url):
        system.rm(url, recursive=True)
