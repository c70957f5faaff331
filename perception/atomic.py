"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from perception.errors import InputError


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that at every moment either the old or the new content is there, whole.

    Raises:
        InputError: the disk is full or the folder not writable; the old content stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(f"{path}: cannot write ({error.strerror or error})") from None
