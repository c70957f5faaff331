"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
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
