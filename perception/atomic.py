"""Atomic writes of files and folders, safe against a crash of the process or the machine."""

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
    """The folder, created if absent; InputError if it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot make the folder ({error.strerror}); choose another --out") from None
    return folder


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file atomically: at any time the path has either the whole old or the whole new content.

    Raises:
        InputError: the disk is full or the folder not writable; the old content does not change.
    """
    write_together({path: content})


def write_together(files: Mapping[Path, bytes]) -> None:
    """Write files that belong together: all are on disk before the first is renamed to its path, in the given order.

    Raises:
        InputError: the disk is full or a folder not writable; the old files do not change.
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
    """A file to write to, which replaces `path` when the block ends.

    After an exception the new file is removed and an earlier one does not change. The temporary file has the same name
    in all processes, so that the next one overwrites what a killed process left.

    Args:
        what: is written, for the error message.

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
    """A file with a temporary name, whose errors name its final path."""

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
    """A new folder to fill, which replaces `path` and its content when the block ends.

    Until then, and after any error, the old folder does not change. Linux exchanges the two folders in one step. On
    other systems and some network disks there is a moment without a folder at `path`; if the process dies then,
    `put_back` restores the old one.

    Args:
        what: is written, for the error message.
        advice: the end of the error message.

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
    """Restore the old folder if a process died while replacing `path`, which left none."""
    if not os.path.lexists(path) and _old(path).is_dir():
        _old(path).rename(path)


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _take_place(fresh: Path, path: Path) -> None:
    """Rename `fresh` to `path`; the old `path` becomes `fresh`, or `_old(path)` where folders cannot be exchanged."""
    if not path.exists():
        fresh.rename(path)
    elif not _exchange(fresh, path):
        shutil.rmtree(_old(path), ignore_errors=True)
        path.rename(_old(path))
        fresh.rename(path)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two paths atomically; False, without any change, if the system or the disk does not support it."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    return renameat2 is not None and renameat2(_HERE, os.fsencode(a), _HERE, os.fsencode(b), _EXCHANGE) == 0


def _flush(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    if os.name != "posix":
        return  # elsewhere folders cannot be opened, nor files for this alone
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
