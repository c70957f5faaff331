"""Read MCAP files (https://mcap.dev/spec) from front to back, so that a truncated or damaged file can still be used.

The index at the end, if there is one, lists the channels; it is never used to find messages.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import lz4.frame
import zstandard
from mcap.reader import SeekingReader
from mcap.records import Channel, Chunk, McapRecord, Message, Metadata, Schema
from mcap.stream_reader import StreamReader, breakup_chunk
from mcap.summary import Summary

from deploy.recordings import foxglove, ros
from deploy.recordings.messages import Content, CorruptMessage, RawMessage, RecordingInfo
from perception.errors import InputError
from perception.io.files import text_of

MAX_RECORD = 1 << 28  # bytes; a longer record is damage
SCENE_INFO = "scene-info"  # the metadata record of foxglove/nuscenes2mcap


class McapRecording:
    """One MCAP file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._schemas: dict[int, Schema] = {}
        self._channels: dict[int, Channel] = {}
        self._decoders: dict[int, tuple[Callable[[bytes], list[Content]], ros.Parse]] = {}  # by channel
        with self._open() as file:
            summary, self._scene = _summary(file)
        of_channel: Counter[int] = Counter()
        if summary is None or summary.statistics is None:
            duration = self._count(of_channel)
        else:
            self._schemas |= summary.schemas
            self._channels |= summary.channels
            of_channel.update(summary.statistics.channel_message_counts)
            duration = summary.statistics.message_end_time - summary.statistics.message_start_time
        scene, of_topic = self._scene, Counter[str]()
        for channel in self._channels.values():
            of_topic[channel.topic] += of_channel[channel.id]
        self.info = RecordingInfo(
            counts=of_topic,
            duration=duration // 1000,
            scene=scene.get("name") or text_of(path.stem),
            location=scene.get("location", ""),
            description=scene.get("description", ""),
            types={each.topic: self._type(each) for each in self._channels.values()},
        )

    def read(self, topics: Collection[str], damage: Callable[[str], None]) -> Iterator[RawMessage]:
        with self._open() as file:
            for record in self._records(file, damage):
                if isinstance(record, Message):
                    channel = self._channels.get(record.channel_id)
                    if channel is not None and channel.topic in topics:
                        decode, parse = self._decoder(channel)
                        ros_type = self._type(channel) if channel.message_encoding == "cdr" else ""
                        time = record.log_time // 1000
                        publisher = self._path, channel.id
                        yield RawMessage(channel.topic, time, record.data, decode, parse, ros_type, publisher)
                else:
                    self._learn(record)

    def _type(self, channel: Channel) -> str:
        schema = self._schemas.get(channel.schema_id)
        return "" if schema is None else schema.name

    def _records(self, file: BinaryIO, damage: Callable[[str], None]) -> Iterator[McapRecord]:
        """Yield every record outside damaged chunks; the length of a damaged chunk still leads to the next one."""
        stream: Any = _BoundedReader(file)
        records = StreamReader(stream, emit_chunks=True, record_size_limit=MAX_RECORD).records
        while True:
            try:
                record = next(records, None)
                within = (
                    breakup_chunk(_decompress(record), validate_crc=True) if isinstance(record, Chunk) else [record]
                )
            except Exception as error:  # decompressors, struct and decoding raise different exceptions
                damage(f"{self._path.name}: damaged before byte {file.tell()} ({_brief(error)})")
                continue  # after damage outside a chunk the stream has ended
            if record is None:
                return
            yield from (each for each in within if each is not None)

    def _count(self, of_channel: Counter[int]) -> int:
        """Count the messages of each channel in a file without an index; returns ns from the first to the last."""
        first, last = None, 0
        with self._open() as file:
            for record in self._records(file, lambda line: None):
                if isinstance(record, Message):
                    of_channel[record.channel_id] += 1
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
        elif isinstance(record, Metadata) and record.name == SCENE_INFO:
            self._scene = record.metadata

    def _decoder(self, channel: Channel) -> tuple[Callable[[bytes], list[Content]], ros.Parse]:
        if channel.id not in self._decoders:
            schema, encoding = self._schemas.get(channel.schema_id), channel.message_encoding
            if encoding in ("protobuf", "json"):
                decode = _refuse if schema is None else foxglove.decoder(encoding, schema)
                self._decoders[channel.id] = decode, foxglove.parser(encoding, schema)
            elif schema is None or encoding != "cdr":
                self._decoders[channel.id] = _refuse, _refuse
            else:
                text, language = schema.data.decode("utf-8", "replace"), schema.encoding.removeprefix("ros2")
                parse = ros.cdr_parser(schema.name, text, language)
                self._decoders[channel.id] = partial(ros.decode, schema.name), parse
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


def _decompress(chunk: Chunk) -> Chunk:
    """The chunk without compression; ValueError if it holds more than it says, or than a record may."""
    size = chunk.uncompressed_size
    if size > MAX_RECORD:
        raise ValueError("an invalid length")
    if chunk.compression == "zstd":
        data = zstandard.ZstdDecompressor().stream_reader(chunk.data).read(size + 1)
    elif chunk.compression == "lz4":
        data = lz4.frame.LZ4FrameDecompressor().decompress(chunk.data, size + 1)
    else:
        data = chunk.data
    if len(data) != size:
        raise ValueError(f"a chunk of {size} bytes has {'more' if len(data) > size else 'less'}")
    return replace(chunk, compression="", data=data)


class _BoundedReader:
    """A file that refuses reads longer than a record may be, which a damaged length would cause."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, length: int) -> bytes:
        if not 0 <= length <= MAX_RECORD:
            raise ValueError("an invalid length")
        return self._file.read(length)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)


def _summary(file: BinaryIO) -> tuple[Summary | None, dict[str, str]]:
    """The index at the end and the metadata of the drive; nothing if the file is truncated."""
    try:
        stream: Any = _BoundedReader(file)
        reader = SeekingReader(stream, record_size_limit=MAX_RECORD)
        scene = next((each.metadata for each in reader.iter_metadata() if each.name == SCENE_INFO), {})
        return reader.get_summary(), scene
    except Exception:  # a damaged index can make the reader raise anything
        return None, {}


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:120] if text else type(error).__name__


def _refuse(_data: bytes) -> list[Content]:
    raise CorruptMessage("an unsupported message type")
