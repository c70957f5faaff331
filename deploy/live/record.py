"""An MCAP file of what came in and went out while driving, which `perception replay` reads."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import NamedTuple

from mcap.writer import CompressionType, Writer

from deploy.live.intake import require_sensors
from deploy.live.outputs import Output
from deploy.live.source import Source
from deploy.live.state import Status
from deploy.recordings.mcap import SCENE_INFO
from deploy.recordings.messages import RawMessage, RecordingInfo
from deploy.recordings.ros_types import TYPES
from deploy.recordings.topics import Topics
from perception.errors import InputError

MOST_WAITING = 256 << 20  # bytes that are not written yet; with more the recording ends
CHUNK = 1 << 20  # bytes
FLUSH = 1.0  # s; what is older can be read after a kill


class _Message(NamedTuple):
    topic: str
    type_name: str
    data: bytes
    time: int  # us


class Recorder(Output):
    """Writes the file, which must not exist, in a thread of its own.

    Messages in CDR of ROS 2's own types are recorded; of other topics a line says that they are not. A disk that is
    full or too slow ends the recording, not the drive, whose name the file keeps.
    """

    name, whole = "record", True

    def __init__(self, path: Path, info: RecordingInfo, say: Callable[[str], None]) -> None:
        try:
            self._file = path.open("xb")
        except FileExistsError:
            raise InputError(f"--record {path}: exists already; choose another file") from None
        except OSError as error:
            raise InputError(f"--record {path}: cannot be written ({error.strerror})") from None
        self._path, self._info, self._say = path, info, say
        self._lock, self._waiting = Lock(), 0  # bytes
        self._queue = SimpleQueue[_Message | None]()  # None: nothing will come any more
        self._channels: dict[str, int | None] = {}  # by topic; None: not recorded
        self._failure: Exception | None = None
        self._told = False
        self._thread = Thread(target=self._run, name="record", daemon=True)
        self._thread.start()

    def tap(self, raw: RawMessage) -> None:
        """Record a message that came in; called by any thread."""
        self.out(raw.topic, raw.type_name, raw.data, raw.time)

    def out(self, topic: str, type_name: str, data: bytes, time: int) -> None:
        """Record a message in CDR, of a time in us by the clock of `RawMessage.time`; called by any thread."""
        with self._lock:
            if self._failure is not None:
                return
            if self._waiting + len(data) > MOST_WAITING:
                self._failure = OSError(f"the disk is too slow: {self._waiting >> 20} MiB waited to be written")
                self._queue.put(None)
                return
            self._queue.put(_Message(topic, type_name, data, time))
            self._waiting += len(data)

    def report(self, status: Status) -> None:
        """Raise what ended the recording, so that the state says so."""
        if self._failure is not None and not self._told:
            self._told = True
            raise self._failure

    def close(self) -> None:
        """End the file, after all messages; a line says if it is not complete."""
        self._queue.put(None)
        self._thread.join()
        if self._failure is not None and not self._told:
            self._say(f"--record {self._path}: is not complete ({self._failure})")

    def _run(self) -> None:
        try:
            with self._file:
                writer = Writer(self._file, chunk_size=CHUNK, compression=CompressionType.LZ4)
                writer.start("ros2")
                info = self._info
                known = {"name": info.scene, "location": info.location, "description": info.description}
                writer.add_metadata(SCENE_INFO, known)
                flushed = time.monotonic()
                while True:
                    with suppress(Empty):
                        message = self._queue.get(timeout=FLUSH)
                        if message is None:
                            break
                        self._write(writer, message)
                    if time.monotonic() - flushed > FLUSH:
                        writer.flush()
                        flushed = time.monotonic()
                writer.finish()
        except Exception as error:  # a full disk; raised by `report`
            with self._lock:
                self._failure, self._queue = error, SimpleQueue()

    def _write(self, writer: Writer, message: _Message) -> None:
        topic, type_name = message.topic, message.type_name
        with self._lock:
            self._waiting -= len(message.data)
        if topic not in self._channels:
            self._channels[topic] = self._add_channel(writer, topic, type_name)
        channel = self._channels[topic]
        if channel is not None:
            writer.add_message(channel, 1000 * message.time, message.data, 1000 * message.time)

    def _add_channel(self, writer: Writer, topic: str, type_name: str) -> int | None:
        if type_name not in TYPES.fielddefs:
            self._say(f"--record: {topic} is not recorded, because it has no messages of ROS 2's own types in CDR")
            return None
        definition, _ = TYPES.generate_msgdef(type_name, ros_version=2)
        schema = writer.register_schema(type_name, "ros2msg", definition.encode())
        return writer.register_channel(topic, "cdr", schema)


def listen(source: Source, topics: Topics, path: Path, seconds: float, say: Callable[[str], None]) -> None:
    """Record what sensors send now for so many seconds, to a file that does not exist; ends the source."""
    try:
        require_sensors(topics, topics.of(), source.topics())
        recorder = Recorder(path, source.info, say)
        source.start(topics.names(), recorder.tap, say)
        time.sleep(seconds)
    finally:
        source.close()
    recorder.close()
