"""Files and folders that appear whole or not at all, whenever the process or the machine stops."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BufferedWriter, FileIO
from pathlib import Path
from typing import Any, BinaryIO

from perception.errors import InputError

_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE, renameat2(2)


def made(folder: Path) -> Path:
    """The folder, made where it is not there; InputError where it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot make the folder ({error.strerror}); choose another --out") from None
    return folder


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that at every moment either the old or the new content is there, whole.

    Raises:
        InputError: the disk is full or the folder not writable; the old content stays.
    """
    write_together({path: content})


def write_together(files: Mapping[Path, bytes]) -> None:
    """Write files that belong together: all are on the disk before the first takes its place, in the order given.

    Raises:
        InputError: the disk is full or a folder not writable; the old files stay.
    """
    temporary = {path: path.with_name(f".{path.name}.{os.getpid()}") for path in files}
    try:
        for path, content in files.items():
            temporary[path].write_bytes(content)
            _flush(temporary[path])
        for path in files:
            os.replace(temporary[path], path)
        for folder in {path.parent for path in files}:
            _flush(folder)
    except OSError as error:
        for unfinished in temporary.values():
            unfinished.unlink(missing_ok=True)
        raise InputError(f"{path}: cannot write ({error.strerror or error})") from None


@contextmanager
def atomic_file(path: Path, what: str) -> Iterator[BinaryIO]:
    """A file to write piece by piece, which takes the place of `path` when the block ends.

    After an exception nothing is left of it and an earlier file is untouched. What a killed process leaves has the
    same name in all processes, so that the next one writes over it.

    Args:
        what: is written, for the message.

    Raises:
        InputError: the disk is full or the folder not writable.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    raw = _File(temporary, path, what)
    try:
        with raw:
            file = BufferedWriter(raw)
            yield file
            with raw.explained():
                file.flush()
                os.fsync(raw.fileno())
        with raw.explained():
            os.replace(temporary, path)
            _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


class _File(FileIO):
    """A file with a temporary name, whose errors name the path that it will have."""

    def __init__(self, temporary: Path, path: Path, what: str) -> None:
        self.path, self.what = path, what
        with self.explained():
            super().__init__(temporary, "w")

    @contextmanager
    def explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            message = f"{self.path}: cannot write {self.what} ({error.strerror}); choose another folder"
            raise InputError(message) from None

    def write(self, content: Any) -> int:
        with self.explained():
            return super().write(content)


@contextmanager
def folder_written_whole(path: Path, what: str, advice: str = "") -> Iterator[Path]:
    """A new folder to fill, which takes the place of `path` and all that is in it when the block ends.

    When the disk fills up, something is raised or the process dies before that, what was there is still whole. Linux
    exchanges the two folders in one step. Where it cannot (other systems, some network disks), there is a moment
    without a folder at `path`; if the process dies then, `put_back` finds the old one.

    Args:
        what: is written, for the message.
        advice: the end of the message.

    Raises:
        InputError: the disk is full or the folder not writable.
    """
    fresh = path.with_name(f".{path.name}.new-{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)  # of a process that died; in a container all have the same number
    try:
        fresh.mkdir(parents=True)
        yield fresh
        for inside in fresh.rglob("*"):
            _flush(inside)
        _flush(fresh)
        put_back(path)
        _take_place(fresh, path)
        _flush(path.parent)
    except OSError as error:
        put_back(path)
        raise InputError(f"{path}: cannot write {what} ({error.strerror or error}){advice}") from None
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(_old(path), ignore_errors=True)


def put_back(path: Path) -> None:
    """Where a process died as it replaced the folder `path`, and none is there, put the old one back."""
    if not os.path.lexists(path) and _old(path).is_dir():
        _old(path).rename(path)


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _take_place(fresh: Path, path: Path) -> None:
    """Rename `fresh` to `path`; what was there is then called `fresh`, or `_old(path)` where they cannot exchange."""
    if not path.exists():
        fresh.rename(path)
    elif not _exchange(fresh, path):
        shutil.rmtree(_old(path), ignore_errors=True)
        path.rename(_old(path))
        fresh.rename(path)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two names in one step; False, with nothing done, where the system or the disk cannot."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    return renameat2 is not None and renameat2(_HERE, os.fsencode(a), _HERE, os.fsencode(b), _EXCHANGE) == 0


def _flush(path: Path) -> None:
    """Have the disk itself keep a file, or the names in a folder."""
    if os.name != "posix":
        return  # elsewhere folders cannot be opened, nor files for this alone
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
