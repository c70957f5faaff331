"""A JSON file with an entry for each frame, written frame by frame in bounded memory.

Its content is `{..., "NAME": {TOKEN: ENTRY, ...}}`. Each entry has a line of its own, so that files of successive
drives can be joined without being parsed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from perception.atomic import atomic_file
from perception.errors import InputError

_SEPARATOR, _END = b",\n", b"}}\n"


class FrameFile:
    """Writes such a file; each frame once."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self._file = path, file
        self._tokens: set[str] = set()

    @classmethod
    @contextmanager
    def open(cls, path: Path, what: str, head: Mapping[str, Any], name: str) -> Iterator[FrameFile]:
        """A file that appears atomically when the block ends.

        Args:
            path: its folder must exist.
            what: is written, for messages.
            head: members before the entries.
            name: of the entries.

        Raises:
            InputError: the disk is full or the folder not writable.
        """
        with atomic_file(path, what) as file:
            file.write(f'{json.dumps(dict(head))[:-1]}, "{name}": {{\n'.encode())
            yield cls(path, file)
            file.write(b"\n" + _END)

    def add(self, token: str, entry: Any) -> None:
        """Append the entry of a frame, any finite JSON.

        Raises:
            InputError: the frame was added before, or the disk is full.
        """
        if token in self._tokens:
            raise InputError(f"{self.path}: sample {token} is predicted twice; give each sample once")
        separator = _SEPARATOR if self._tokens else b""
        self._file.write(separator + f"{json.dumps(token)}: {json.dumps(entry, allow_nan=False)}".encode())
        self._tokens.add(token)


def join(parts: Sequence[Path], path: Path, what: str) -> None:
    """Write the entries of all parts, in order, to one file, as if one `FrameFile` had got them; atomically.

    Raises:
        InputError: a part is not whole, their heads differ, or the file cannot be written.
    """
    with atomic_file(path, what) as file:
        head, separator = b"", b""
        for part in parts:
            own, *lines = _lines(part)
            if head and own != head:
                raise InputError(f"{part}: is of another network than {parts[0]}; remove both to make them again")
            file.write(b"" if head else own)
            head = own
            for line in lines:
                file.write(separator + line)
                separator = _SEPARATOR
        file.write(b"\n" + _END)


def _lines(path: Path) -> Iterator[bytes]:
    """The first line of a file and its entries, without what separates them."""
    try:
        with path.open("rb") as file:
            yield file.readline()
            for line in file:
                if line == _END:
                    return
                if entry := line.rstrip(b",\n"):
                    yield entry
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); remove its folder to replay the drive again"
        ) from None
    raise InputError(f"{path}: is not whole; remove its folder to replay the drive again")
