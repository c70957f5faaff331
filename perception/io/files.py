"""Files and folders that are whole or absent, also after a crash of the process or the machine.

And JSON: files with an entry for each frame, and numbers without NaN.
"""

from __future__ import annotations

import ctypes
import gc
import json
import math
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson

from perception.errors import InputError

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # renameat2(2)
_SEPARATOR, _END = b",\n", b"}}\n"  # of entries in a `FrameFile`


def make_folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot make the folder ({error.strerror}); choose another --out") from None
    return folder


def text_of(name: str) -> str:
    """A file's name as UTF-8 text, in any locale and for any bytes."""
    return os.fsencode(name).decode(errors="replace")


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file atomically: at any time the path has either the whole old or the whole new content."""
    write_together({path: content})


def write_together(files: Mapping[Path, bytes]) -> None:
    """Write files that belong together: all are on disk before the first is renamed to its path, in the given order."""
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
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _flush(path.parent)
    except OSError as error:
        if error.filename not in (None, str(temporary)):
            raise  # of another file, in the block
        raise InputError(f"{path}: cannot write {what} ({error.strerror}); choose another folder") from None
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def atomic_folder(path: Path, what: str, advice: str = "") -> Iterator[Path]:
    """A new folder to fill, which replaces `path` and its content when the block ends.

    A link at `path` stays, and the folder that it leads to is replaced. Until then, and after any error, the old folder
    does not change. Linux exchanges the two folders in one step. On other systems and some network disks there is a
    moment without a folder at `path`; if the process dies then, `restore_folder` puts the old one back.
    """
    given, path = path, Path(os.path.realpath(path))
    fresh = path.with_name(f".{path.name}.new-{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)  # of a process that died; in a container all have the same number
    try:
        fresh.mkdir(parents=True)
        yield fresh
        for inside in (*fresh.rglob("*"), fresh):
            _flush(inside)
        restore_folder(path)
        if not path.exists():
            fresh.rename(path)
        elif not _exchange(fresh, path):
            shutil.rmtree(_old(path), ignore_errors=True)
            path.rename(_old(path))
            fresh.rename(path)
        _flush(path.parent)
    except OSError as error:
        restore_folder(path)
        raise InputError(f"{given}: cannot write {what} ({error.strerror or error}){advice}") from None
    finally:
        shutil.rmtree(fresh, ignore_errors=True)  # now the old one, if they were exchanged
    shutil.rmtree(_old(path), ignore_errors=True)


def restore_folder(path: Path) -> None:
    """Put the old folder back if a process died while replacing `path`, which left none."""
    path = Path(os.path.realpath(path))
    if not os.path.lexists(path) and _old(path).is_dir():
        _old(path).rename(path)


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _exchange(a: Path, b: Path) -> bool:
    """Swap two paths atomically; False, without any change, if the system or the disk does not support it."""
    swap = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    places = _AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b)
    return swap is not None and swap(*places, _RENAME_EXCHANGE) == 0


def _flush(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    if os.name != "posix":
        return  # elsewhere folders cannot be opened, nor files for this alone
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class FrameFile:
    """Writes a JSON file with an entry for each frame, frame by frame in bounded memory.

    Its content is `{..., "NAME": {TOKEN: ENTRY, ...}}`. Each entry has a line of its own, so that files of successive
    drives can be joined without being parsed.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self._file = path, file
        self._tokens: set[str] = set()

    @classmethod
    @contextmanager
    def open(cls, path: Path, what: str, head: Mapping[str, Any], name: str) -> Iterator[FrameFile]:
        """A file that appears atomically when the block ends.

        Args:
            path: its folder must exist.
            head: members before the entries.
        """
        with atomic_file(path, what) as file:
            file.write(f'{json.dumps(dict(head))[:-1]}, "{name}": {{\n'.encode())
            yield cls(path, file)
            file.write(b"\n" + _END)

    def add(self, token: str, entry: Any) -> None:
        """Append the entry of a frame, any finite JSON."""
        if token in self._tokens:
            raise InputError(f"{self.path}: sample {token} is predicted twice; give each sample once")
        separator = _SEPARATOR if self._tokens else b""
        self._file.write(separator + f"{json.dumps(token)}: {json.dumps(entry, allow_nan=False)}".encode())
        self._tokens.add(token)


def join_frame_files(parts: Sequence[Path], path: Path, what: str) -> None:
    """Write the entries of all parts, in order, to one file, as if one `FrameFile` had got them; atomically."""
    with atomic_file(path, what) as file:
        head, separator = b"", b""
        for part in parts:
            lines = _lines(part)
            own = next(lines)
            if head and own != head:
                raise InputError(f"{part}: is of another network than {parts[0]}; remove both to make them again")
            file.write(b"" if head else own)
            head = own
            for line in lines:
                file.write(separator + line)
                separator = _SEPARATOR
        file.write(b"\n" + _END)


def read_frame_file(path: Path) -> Iterator[tuple[str, Any]]:
    """Token and entry of each frame of a file that a `FrameFile` wrote, one line in memory at a time."""
    lines = _lines(path)
    next(lines)  # before the entries
    for line in lines:
        yield next(iter(orjson.loads(b"{" + line + b"}").items()))


def _lines(path: Path) -> Iterator[bytes]:
    advice = "remove its folder to replay the drive again"
    try:
        with path.open("rb") as file:
            yield file.readline()
            for line in file:
                if line == _END:
                    return
                if entry := line.rstrip(b",\n"):
                    yield entry
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {advice}") from None
    raise InputError(f"{path}: is not whole; {advice}")


@contextmanager
def pause_collector() -> Iterator[None]:
    """Do not search for reference cycles in a block that makes many objects without any, such as those of JSON.

    Objects are freed as always when the last reference to them goes.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def strict(value: Any) -> Any:
    """The value for strict JSON: string keys, None for NaN, Python numbers."""
    if isinstance(value, dict):
        return {str(key): strict(entry) for key, entry in value.items()}
    if value is None or isinstance(value, int):
        return value
    return None if math.isnan(value) else float(value)


def jsonable(value: Any) -> Any:
    """The value with lists in place of arrays, in which None stands for NaN."""
    if isinstance(value, dict):
        return {key: jsonable(entry) for key, entry in value.items()}
    if not isinstance(value, np.ndarray):
        return value
    unknown = np.isnan(value) if value.dtype.kind == "f" else np.zeros(0, bool)
    if unknown.any():
        value = value.astype(object)
        value[unknown] = None
    return value.tolist()


def format_number(value: float | None) -> str:
    """The number with three digits; - for None; integers unchanged."""
    return "-" if value is None else str(value) if isinstance(value, int) else f"{value:.3f}"
