"""rosbag2 recordings: a folder with metadata.yaml and SQLite or MCAP files, or one SQLite file. Through `rosbags`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from rosbags.rosbag2 import Reader

from deploy.replay.sources import ros
from deploy.replay.sources.mcap import McapRecording
from deploy.replay.sources.reading import Held, Raw, Recording
from perception.errors import InputError


class RosbagRecording:
    """One recording of one or several files, in their order.

    Raises:
        InputError: nothing in it can be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._parts, self._closed = [], []
        for part in _parts(path):
            try:
                opened: Recording = McapRecording(part) if part.suffix == ".mcap" else _SqliteFile(part)
                self._parts.append(opened)
            except InputError as error:
                self._closed.append(str(error))
        if not self._parts:
            raise InputError(self._closed[0] if self._closed else f"{path}: no .db3 or .mcap file of a rosbag2 in it")
        held = [part.held for part in self._parts]
        topics = dict.fromkeys(topic for each in held for topic in each.counts)
        self.held = Held(
            {topic: sum(each.counts.get(topic, 0) for each in held) for topic in topics},
            sum(each.duration for each in held),
            path.stem,
        )

    def read(self, topics: Collection[str], damage: Callable[[str], None]) -> Iterator[Raw]:
        for line in self._closed:
            damage(line)
        for part in self._parts:
            yield from part.read(topics, damage)


class _SqliteFile:
    """One .db3 file, or a whole compressed recording, which `rosbags` unpacks."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with Reader(path) as reader:
                counts: dict[str, int] = {}
                for each in reader.connections:
                    counts[each.topic] = counts.get(each.topic, 0) + each.msgcount
                duration = reader.duration // 1000
        except Exception as error:  # SQLite's errors come through, and whatever a damaged table leads to
            reason = " ".join(str(error).split())
            raise InputError(
                f"{path}: cannot read the recording ({reason[:160]}); copy it again, or save what is left with "
                "`sqlite3 FILE .recover`"
            ) from None
        self.held = Held(counts, duration, path.stem)

    def read(self, topics: Collection[str], damage: Callable[[str], None]) -> Iterator[Raw]:
        try:
            with Reader(self._path) as reader:
                wanted = [each for each in reader.connections if each.topic in topics]
                decoders = {each.msgtype: partial(ros.decode, each.msgtype) for each in wanted}
                for connection, time, data in reader.messages(wanted) if wanted else ():
                    data = data if isinstance(data, bytes) else b""  # SQLite's columns hold any type
                    yield Raw(connection.topic, time // 1000, data, decoders[connection.msgtype])
        except Exception as error:
            damage(f"{self._path.name}: damaged ({' '.join(str(error).split())[:120]})")


def _parts(path: Path) -> list[Path]:
    """The files of a recording in their order; the folder itself where its files are compressed."""
    if not path.is_dir():
        return [path]
    information: Any = {}
    try:
        content = yaml.safe_load((path / "metadata.yaml").read_text(encoding="utf-8"))
        information = content["rosbag2_bagfile_information"]
        if information.get("compression_mode"):
            return [path]
        names = [str(name) for name in information["relative_file_paths"]]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, AttributeError):
        names = []  # a recorder that was killed leaves no metadata, or half of it
    listed = [path / Path(name).name for name in names]
    return listed or sorted(file for file in path.iterdir() if file.suffix in (".db3", ".mcap"))
