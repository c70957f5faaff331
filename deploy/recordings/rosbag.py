"""Read rosbag2 recordings: a folder with metadata.yaml and SQLite or MCAP files, or one SQLite file."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import zstandard
from rosbags.interfaces import Connection
from rosbags.rosbag2 import Reader

from deploy.recordings import ros
from deploy.recordings.mcap import MAX_RECORD, McapRecording
from deploy.recordings.messages import MessageFile, RawMessage, RecordingInfo
from perception.errors import InputError
from perception.io.files import text_of
from perception.io.section import parse_yaml

_PART = 1 << 22  # bytes that are decompressed at once


class RosbagRecording:
    """A recording of one or several files."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files, self._unreadable = [], []
        for part in _files(path):
            try:
                opened: MessageFile = McapRecording(part) if part.suffix == ".mcap" else _SqliteFile(part)
                self._files.append(opened)
            except InputError as error:
                self._unreadable.append(str(error))
        if not self._files:
            raise InputError(
                self._unreadable[0] if self._unreadable else f"{path}: no .db3 or .mcap file of a rosbag2 in it"
            )
        infos = [part.info for part in self._files]
        topics = dict.fromkeys(topic for each in infos for topic in each.counts)
        self.info = RecordingInfo(
            {topic: sum(each.counts.get(topic, 0) for each in infos) for topic in topics},
            sum(each.duration for each in infos),
            text_of(path.stem),
            types={topic: kind for each in infos for topic, kind in each.types.items()},
        )

    def read(self, topics: Collection[str], damage: Callable[[str], None]) -> Iterator[RawMessage]:
        for line in self._unreadable:
            damage(line)
        for part in self._files:
            yield from part.read(topics, damage)


class _SqliteFile:
    """One .db3 file, or a compressed recording, which `rosbags` decompresses."""

    def __init__(self, path: Path) -> None:
        self._path = path
        if path.is_dir():
            _require_space(path)
        try:
            with Reader(path) as reader:
                counts: dict[str, int] = {}
                for each in reader.connections:
                    counts[each.topic] = counts.get(each.topic, 0) + each.msgcount
                duration, types = reader.duration // 1000, {each.topic: each.msgtype for each in reader.connections}
        except Exception as error:  # SQLite's errors, and whatever a damaged table causes
            reason = " ".join(str(error).split())
            raise InputError(
                f"{path}: cannot read the recording ({reason[:160]}); copy it again, or save what is left with "
                "`sqlite3 FILE .recover`"
            ) from None
        self.info = RecordingInfo(counts, duration, text_of(path.stem), types=types)

    def read(self, topics: Collection[str], damage: Callable[[str], None]) -> Iterator[RawMessage]:
        try:
            with Reader(self._path) as reader:
                packed = reader.compression_mode == "message"
                if packed:  # `rosbags` would decompress messages of any length
                    reader.storage.metadata = reader.storage.metadata._replace(compression_mode=None)
                wanted = [each for each in reader.connections if each.topic in topics]
                decoders = {each.msgtype: partial(ros.decode, each.msgtype) for each in wanted}
                parsers = {each.id: _parser(each) for each in wanted}
                for connection, time, data in reader.messages(wanted) if wanted else ():
                    data = data if isinstance(data, bytes) else b""  # a column of SQLite holds any type
                    data = _decompress(data) if packed else data
                    kind, parse, publisher = connection.msgtype, parsers[connection.id], (self._path, connection.id)
                    yield RawMessage(connection.topic, time // 1000, data, decoders[kind], parse, kind, publisher)
        except Exception as error:
            damage(f"{self._path.name}: damaged ({' '.join(str(error).split())[:120]})")


def _parser(connection: Connection) -> ros.Parse:
    definition = connection.msgdef
    return ros.cdr_parser(connection.msgtype, definition.data, definition.format.name.lower())


def _require_space(folder: Path) -> None:
    """Refuse compressed files that are longer than what their folder may be decompressed to: a few KB can be TB."""
    free = left = shutil.disk_usage(tempfile.gettempdir()).free
    for archive in sorted(folder.glob("*.zstd")):
        try:
            with archive.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as content:
                while left >= 0 and (part := content.read(_PART)):
                    left -= len(part)
        except (OSError, zstandard.ZstdError):
            continue  # the reader says what is wrong with it
    if left < 0:
        raise InputError(
            f"{folder}: its files need more than the {free / 1e9:.1f} GB that are free in {tempfile.gettempdir()} when "
            "they are decompressed; set TMPDIR to a larger folder, or see whether the recording is damaged"
        )


def _decompress(data: bytes) -> bytes:
    """A message without compression; nothing if it is damaged, or longer than a record may be."""
    try:
        stated = zstandard.frame_content_size(data)
        return b"" if stated > MAX_RECORD else zstandard.ZstdDecompressor().decompress(data, MAX_RECORD)
    except zstandard.ZstdError:
        return b""


def _files(path: Path) -> list[Path]:
    """The files of a recording in order; the folder itself if its files are compressed."""
    if not path.is_dir():
        return [path]
    information: Any = {}
    try:
        content = parse_yaml((path / "metadata.yaml").read_text(encoding="utf-8"))
        information = content["rosbag2_bagfile_information"]
        if information.get("compression_mode"):
            return [path]
        names = [str(name) for name in information["relative_file_paths"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        names = []  # a recorder that was killed leaves no metadata or an incomplete file
    listed = [path / Path(name).name for name in names]
    return listed or sorted(file for file in path.iterdir() if file.suffix in (".db3", ".mcap"))
