"""MCAP files, read from front to back, so that one cut off or damaged inside still gives what is whole.

https://mcap.dev/spec. The index at the end is used where there is one, to know the channels; never to find messages.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from mcap.reader import SeekingReader
from mcap.records import Channel, Chunk, McapRecord, Message, Schema
from mcap.stream_reader import StreamReader, breakup_chunk
from mcap.summary import Summary

from deploy.replay.sources import foxglove, ros
from deploy.replay.sources.messages import Content, Corrupt
from deploy.replay.sources.reading import Held, Raw
from perception.errors import InputError

_MOST = 1 << 28  # bytes of a record; a longer one is damage
_INFO = "scene-info"  # the metadata record of foxglove/nuscenes2mcap


class McapRecording:
    """One file.

    Raises:
        InputError: it cannot be opened or is no MCAP file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._schemas: dict[int, Schema] = {}
        self._channels: dict[int, Channel] = {}
        self._decoders: dict[int, Callable[[bytes], list[Content]]] = {}
        with self._open() as file:
            summary, info = _summary(file)
        counted: Counter[int] = Counter()
        if summary is None or summary.statistics is None:
            duration = self._count(counted)
        else:
            self._schemas |= summary.schemas
            self._channels |= summary.channels
            counted.update(summary.statistics.channel_message_counts)
            duration = summary.statistics.message_end_time - summary.statistics.message_start_time
        counts: Counter[str] = Counter()
        for channel in self._channels.values():
            counts[channel.topic] += counted[channel.id]
        name = info.get("name") or path.stem
        self.held = Held(counts, duration // 1000, name, info.get("location", ""), info.get("description", ""))

    def read(self, topics: Collection[str], damage: Callable[[str], None]) -> Iterator[Raw]:
        with self._open() as file:
            for record in self._records(file, damage):
                if isinstance(record, Message):
                    channel = self._channels.get(record.channel_id)
                    if channel is not None and channel.topic in topics:
                        yield Raw(channel.topic, record.log_time // 1000, record.data, self._decoder(channel))
                else:
                    self._learn(record)

    def _records(self, file: BinaryIO, damage: Callable[[str], None]) -> Iterator[McapRecord]:
        """Every record; of a damaged chunk none, since its length still leads to the next."""
        stream: Any = _Careful(file)
        records = StreamReader(stream, emit_chunks=True, record_size_limit=_MOST).records
        while True:
            try:
                record = next(records, None)
                within = breakup_chunk(record, validate_crc=True) if isinstance(record, Chunk) else [record]
            except Exception as error:  # decompressors, struct and decoding each raise their own
                damage(f"{self._path.name}: damaged before byte {file.tell()} ({_shortly(error)})")
                continue  # the stream has ended if it was not a chunk
            if record is None:
                return
            yield from (each for each in within if each is not None)

    def _count(self, counted: Counter[int]) -> int:
        """Count the messages of each channel, of a file without an index; returns ns from first to last."""
        first, last = None, 0
        with self._open() as file:
            for record in self._records(file, lambda line: None):
                if isinstance(record, Message):
                    counted[record.channel_id] += 1
                    first = record.log_time if first is None else min(first, record.log_time)
                    last = max(last, record.log_time)
                else:
                    self._learn(record)
        return 0 if first is None else last - first

    def _learn(self, record: McapRecord) -> None:
        if isinstance(record, Schema):
            self._schemas[record.id] = record
        elif isinstance(record, Channel):
            self._channels[record.id] = record

    def _decoder(self, channel: Channel) -> Callable[[bytes], list[Content]]:
        if channel.id not in self._decoders:
            schema = self._schemas.get(channel.schema_id)
            if schema is None:
                self._decoders[channel.id] = _unknown
            elif channel.message_encoding == "cdr":
                self._decoders[channel.id] = partial(ros.decode, schema.name)
            elif channel.message_encoding in ("protobuf", "json"):
                self._decoders[channel.id] = foxglove.decoder(channel.message_encoding, schema)
            else:
                self._decoders[channel.id] = _unknown
        return self._decoders[channel.id]

    def _open(self) -> BinaryIO:
        try:
            file = self._path.open("rb")
        except OSError as error:
            raise InputError(f"{self._path}: cannot read the recording ({error.strerror})") from None
        if file.read(5) != b"\x89MCAP":
            file.close()
            raise InputError(f"{self._path}: not an MCAP file; copy it again")
        file.seek(0)
        return file


class _Careful:
    """A file that is never asked for all of its rest, as the length of a damaged message may do."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, length: int) -> bytes:
        if not 0 <= length <= _MOST:
            raise ValueError("a length that is none")
        return self._file.read(length)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)


def _summary(file: BinaryIO) -> tuple[Summary | None, dict[str, str]]:
    """The index at the end, and the metadata of the drive; nothing of a file that was cut off."""
    try:
        stream: Any = _Careful(file)
        reader = SeekingReader(stream, record_size_limit=_MOST)
        info = next((each.metadata for each in reader.iter_metadata() if each.name == _INFO), {})
        return reader.get_summary(), info
    except Exception:  # whatever a damaged index makes the reader run into
        return None, {}


def _shortly(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:120] if text else type(error).__name__


def _unknown(_data: bytes) -> list[Content]:
    raise Corrupt("a type of message that is not read")
