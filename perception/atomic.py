"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from perception.errors import InputError


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
        for path in files:
            os.replace(temporary[path], path)
    except OSError as error:
        for unfinished in temporary.values():
            unfinished.unlink(missing_ok=True)
        raise InputError(f"{path}: cannot write ({error.strerror or error})") from None


@contextmanager
def folder_written_whole(path: Path, what: str) -> Iterator[Path]:
    """A new folder to fill, which takes the place of `path` and all that is in it when the block ends.

    When the disk fills up, something is raised or the process dies before that, what was there is still whole.

    Args:
        what: is written, for the message.

    Raises:
        InputError: the disk is full or the folder not writable.
    """
    fresh, old = (path.with_name(f".{path.name}.{suffix}-{os.getpid()}") for suffix in ("new", "old"))
    try:
        fresh.mkdir(parents=True)
        yield fresh
        if path.exists():
            path.rename(old)
        fresh.rename(path)
    except OSError as error:
        if old.exists() and not path.exists():
            old.rename(path)
        raise InputError(f"{path}: cannot write {what} ({error.strerror or error})") from None
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
